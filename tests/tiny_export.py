"""A tiny random ParGo on disk, as an exported folder."""

from __future__ import annotations

from pathlib import Path


def write_export(folder: Path, tokenizer_folder: Path) -> Path:
    """A model of two layers that sees its images, as zero-to-hf leaves it, hashes included."""
    from tiny_pargo import tiny_pargo

    from pargo_ds.files.sha256sums import write_hashes

    model, processor = tiny_pargo(tokenizer_folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_hashes(folder)
    return folder
