"""The formats people have -> samples. A source is a frozen dataclass of options; `outcomes` reads one chunk of it."""

from pargo_ds.data.sources.coco import Coco
from pargo_ds.data.sources.finish import Finish
from pargo_ds.data.sources.llava import Llava
from pargo_ds.data.sources.rejects import Reject, SourceError
from pargo_ds.data.sources.source import Chunk, Outcome, Source, outcomes
from pargo_ds.data.sources.tables import Table
from pargo_ds.data.sources.webdataset import WebDataset

SOURCES: dict[str, type[Source]] = {"llava": Llava, "webdataset": WebDataset, "coco": Coco, "table": Table}
"""Name on the command line -> source."""

__all__ = ["SOURCES", "Chunk", "Coco", "Finish", "Llava", "Outcome", "Reject", "Source", "SourceError", "Table",
           "WebDataset", "outcomes"]  # fmt: skip
