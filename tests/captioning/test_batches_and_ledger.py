"""Batch files hold the same requests; the ledger survives torn lines and lets one captioner in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, answer

from pargo_ds.captioning.ask.asking import RequestPolicy
from pargo_ds.captioning.ask.batch_files import forget, read_results, write_batches
from pargo_ds.captioning.ask.budget import Price
from pargo_ds.captioning.ask.captions import jobs_of, write_captions
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.online import Online, ask
from pargo_ds.captioning.ask.prompt import read_prompt
from pargo_ds.captioning.ask.request import Parameters
from pargo_ds.captioning.run_files import RunFolder
from pargo_ds.errors import CaptionError

PRICE, TINY = Price(1.0, 10.0), Parameters("tiny")


def written(run: RunFolder, ledger: Ledger, folder: Path, **options) -> list[Path]:
    limit = options.pop("limit", 100.0)
    return write_batches(
        jobs_of(run), folder, ledger, read_prompt(), TINY, price=PRICE, limit=limit, **options
    )


def results(path: Path, what: str = "ok") -> Path:
    """What OpenAI's Batch API and `vllm run-batch` give back for a file."""
    lines = []
    for number, line in enumerate(path.read_text().splitlines()):
        request = json.loads(line)
        body = answer(what, (1000, 100), request["body"]["model"], number)
        response = {"status_code": 200, "request_id": f"r{number}", "body": body}
        lines.append(json.dumps({"id": f"b{number}", "custom_id": request["custom_id"],
                                 "response": response, "error": None}))  # fmt: skip
    out = path.with_name(f"results-{path.name}")
    out.write_text("\n".join(lines) + "\n")
    return out


def test_batches_are_asked_once_and_their_answers_are_captions(
    run: RunFolder, tmp_path: Path
) -> None:
    with Ledger(run.ledger) as ledger, FakeEndpoint() as fake:
        files = written(run, ledger, tmp_path / "batches", file_requests=15)
        assert [len(path.read_text().splitlines()) for path in files] == [15, 15, 10]
        request = json.loads(files[0].read_text().splitlines()[0])
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        assert written(run, ledger, tmp_path / "batches") == []
        online = Online(fake.url, None, read_prompt(), TINY, PRICE, 10.0, RequestPolicy(at_once=2))
        account = ask(run, ledger, online, said=lambda text: None)
        assert (account.attempts, account.waiting_for_batch) == (0, 40)
        assert read_results([results(files[0])], ledger, PRICE) == {"ok": 15}
        assert read_results([results(files[0])], ledger, PRICE) == {"known": 15}
        assert ledger.spent == pytest.approx(15 * 0.002)
        assert forget(files[1].name, ledger) == 15
        account = ask(run, ledger, online, said=lambda text: None)
        assert account.attempts == 15
    with Ledger(run.ledger) as ledger:
        assert len(ledger.batched) == 10
        assert write_captions(run, ledger, read_prompt(), TINY) == {"ok": 30, "no answer": 10}


def test_files_end_before_they_are_too_large(run: RunFolder, tmp_path: Path) -> None:
    with Ledger(run.ledger) as ledger:
        files = written(run, ledger, tmp_path / "batches", file_bytes=20_000)
        assert len(files) > 2
        assert all(path.stat().st_size <= 20_000 for path in files)


def test_a_batch_holds_no_more_than_the_budget(run: RunFolder, tmp_path: Path) -> None:
    with Ledger(run.ledger) as ledger:
        written(run, ledger, tmp_path / "batches", limit=0.3)
        assert 0 < len(ledger.batched) < 10
    with Ledger(tmp_path / "new") as ledger, pytest.raises(CaptionError, match="no room for one"):
        written(run, ledger, tmp_path / "none", limit=0.001)


def test_failed_and_expired_results_are_free_again(run: RunFolder, tmp_path: Path) -> None:
    with Ledger(run.ledger) as ledger:
        (file,) = written(run, ledger, tmp_path / "batches")
        lines = []
        for line in file.read_text().splitlines():
            error = {"code": "batch_expired", "message": "too late"}
            lines.append(
                {"custom_id": json.loads(line)["custom_id"], "response": None, "error": error}
            )
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert read_results([path], ledger, PRICE) == {"failed": 40}
        assert ledger.batched == {}
        assert ledger.spent == 0
        path.write_text('{"id": 1}\n')
        with pytest.raises(CaptionError, match="line 1 is no result of a batch"):
            read_results([path], ledger, PRICE)


def test_one_ledger_has_one_captioner(run: RunFolder) -> None:
    with Ledger(run.ledger), pytest.raises(CaptionError, match="in use by another captioner"):
        Ledger(run.ledger)
    Ledger(run.ledger).close()


SENT = {"kind": "sent", "key": "k", "reserved": 0.5}
ANSWERED = {"kind": "answered", "key": "k", "outcome": "ok", "text": "A dog.", "usage": None,
            "cost": 0.25, "model": "m", "request_id": "r"}  # fmt: skip


def test_a_request_in_flight_at_the_end_of_a_file_is_perhaps_paid(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.write([SENT])
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            assert ledger.maybe_paid == {"k": 1}
            assert ledger.spent == ledger.unknown_cost == 0.5
    with Ledger(tmp_path) as ledger:
        ledger.write([SENT, ANSWERED])
    with Ledger(tmp_path) as ledger:
        assert "k" in ledger
        assert ledger.answer("k")["text"] == "A dog."
        assert ledger.maybe_paid == {"k": 1}
        assert ledger.spent == 0.75


def test_a_torn_last_line_is_not_believed_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.write([SENT, ANSWERED])
    path = tmp_path / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with Ledger(tmp_path) as ledger:
        assert "k" not in ledger
        assert ledger.maybe_paid == {"k": 1}
        ledger.write([SENT, ANSWERED])  # into a file of its own
    with Ledger(tmp_path) as ledger:
        assert "k" in ledger
    path.write_bytes(b"{]\n" + whole)
    with pytest.raises(CaptionError, match="000001.jsonl, byte 0, is damaged"):
        Ledger(tmp_path)
