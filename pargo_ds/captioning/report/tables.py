"""The accounts of the stages as tables and bars, for the terminal and the report."""

from __future__ import annotations

from typing import Any

from pargo_ds.inspection.tables import Bars, Block, Table


def decision_tables(account: dict[str, Any]) -> list[Block]:
    """Return what `decide` found: the totals, the reasons, and how it measures up against planted
    faults.
    """
    captions, parts = account["captions"], account["parts"]
    totals = [
        ("captions kept", _of(account["kept"], captions)),
        ("captions dropped", _of(captions - account["kept"], captions)),
        ("parts cut out", _of(account["parts_cut"], parts)),
        ("scorers", ", ".join(account["scorers"]) or "none: the text alone decides"),
        ("votes that decide", str(account["votes"])),
    ]
    return [
        Table("Decisions", ("", ""), totals),
        Bars("Reasons against captions (several may hold)", list(account["reasons"].items())),
        Bars("Reasons against parts", list(account["part_reasons"].items())),
        planted_table(account),
    ]


def planted_table(account: dict[str, Any]) -> Table:
    """Return the recall of each kind of planted fault, with 95 % intervals, and what is lost of the
    originals.
    """
    rows = [(kind, *_share(found)) for kind, found in account["planted"].items()]
    originals = account["originals"]
    rows.append(("(unchanged captions dropped)", *_share(originals["dropped"])))
    rows.append(("(unchanged parts cut out)", *_share(originals["parts cut"])))
    header = ("planted fault", "copies", "found", "share", "95 % interval")
    return Table("Planted faults: what the filter finds of them", header, rows)


def _share(found: dict[str, Any]) -> tuple[str, str, str, str]:
    interval = f"{found['low']:.1%} - {found['high']:.1%}"
    return f"{found['all']:,}", f"{found['found']:,}", f"{found['share']:.1%}", interval


def _of(part: int, whole: int) -> str:
    if not whole:
        return "0"
    return f"{part:,} ({part / whole:.1%})"
