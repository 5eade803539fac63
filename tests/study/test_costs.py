"""What a projector costs."""

from __future__ import annotations

import torch

from pargo_ds.config import parse_config
from pargo_ds.model import Projector
from pargo_ds.study.costs import projector_ms


def test_milliseconds_are_those_of_one_thread_however_many_there_are(tiny_run, monkeypatch):
    """With two threads the CPU time of a call was three times as long, measured."""
    threads = torch.get_num_threads()
    seen = set()
    call = Projector.__call__

    def noted(self, *arguments, **options):
        seen.add(torch.get_num_threads())
        return call(self, *arguments, **options)

    monkeypatch.setattr(Projector, "__call__", noted)
    torch.set_num_threads(2)
    try:
        assert projector_ms(parse_config(tiny_run), torch.device("cpu")) > 0
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(threads)
