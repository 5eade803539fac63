"""Read samples from the formats in which people have their data.

A source is a frozen dataclass with its options; `outcomes` reads one chunk of a source.
"""

from pargo_ds.data.sources.coco import Coco
from pargo_ds.data.sources.llava import Llava
from pargo_ds.data.sources.rejects import Reject
from pargo_ds.data.sources.sample_transform import SampleTransform
from pargo_ds.data.sources.source import Chunk, Outcome, Source, outcomes
from pargo_ds.data.sources.tables import Table
from pargo_ds.data.sources.webdataset import WebDataset
from pargo_ds.errors import SourceError

__all__ = ["Chunk", "Coco", "Llava", "Outcome", "Reject", "SampleTransform", "Source", "SourceError", "Table",
           "WebDataset", "outcomes"]  # fmt: skip
