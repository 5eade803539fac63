"""Captions from an endpoint: what is paid is kept, refusals are outcomes, faults are asked again,
the budget holds.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, fingerprint

from pargo_ds.captioning.ask import asking
from pargo_ds.captioning.ask.asking import Account, RequestPolicy
from pargo_ds.captioning.ask.budget import Price, Rate
from pargo_ds.captioning.ask.captions import jobs_of, write_captions
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.online import Online, ask
from pargo_ds.captioning.ask.prompt import read_prompt
from pargo_ds.captioning.ask.request import Parameters, request_body
from pargo_ds.captioning.run_files import RunFolder, read_lines, read_object
from pargo_ds.errors import MachineFault

FREE = Price(0, 0)
DEAR = Price(1.0, 10.0)
"""With the fake endpoint's usage one answer costs $0.002."""
QUICK = RequestPolicy(pause_s=0.0, at_once=4)


def online(fake: FakeEndpoint, **changes) -> Online:
    options = {
        "address": fake.url,
        "key": None,
        "prompt": read_prompt(),
        "parameters": Parameters("tiny"),
        "price": FREE,
        "limit": 0.0,
        "policy": QUICK,
        "timeout_s": 20,
    }
    return Online(**{**options, **changes})


def asked(run: RunFolder, how: Online, **options) -> tuple[Account, dict[str, int]]:
    with Ledger(run.ledger) as ledger:
        account = ask(run, ledger, how, said=lambda text: None, **options)
        return account, dict(write_captions(run, ledger, how.prompt, how.parameters))


def test_each_image_is_asked_once_and_a_second_start_asks_nothing(run: RunFolder) -> None:
    with FakeEndpoint() as fake:
        account, outcomes = asked(run, online(fake))
        assert outcomes == {"ok": 40}
        assert account.attempts == 40
        assert set(fake.paid().values()) == {1}
        account, outcomes = asked(run, online(fake))
        assert (account.attempts, account.known, outcomes) == (0, 40, {"ok": 40})
        assert len(fake.log) == 40
    row = next(read_lines(run.captions))
    assert row["global"].startswith("A square stands")
    assert row["parts"] == [{"where": "top left", "what": "A plain square of one colour."}]
    made_by = row["provenance"]
    assert made_by["answered_by"] == "tiny-2026"
    assert made_by["prompt"].startswith("global_partial_v1@")
    assert made_by["usage"] == {"prompt_tokens": 1000, "completion_tokens": 100}


def test_the_request_is_one_that_openai_documents(run: RunFolder) -> None:
    with FakeEndpoint() as fake:
        asked(run, online(fake))
    body = fake.log[0]["body"]
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "response_format"}
    assert body["response_format"]["json_schema"]["strict"] is True
    image, text = body["messages"][1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["type"] == "text"


def test_another_prompt_model_or_size_is_another_request(run: RunFolder) -> None:
    with FakeEndpoint() as fake:
        asked(run, online(fake))
        for changes in ({"model": "other"}, {"model": "tiny", "longest_side": 40}):
            account, _ = asked(run, online(fake, parameters=Parameters(**changes)))
            assert account.attempts == 40


def test_faults_that_cost_nothing_are_asked_again(run: RunFolder) -> None:
    with FakeEndpoint(faults={"429": 0.2, "500": 0.2}, seed=3) as fake:
        account, outcomes = asked(
            run, online(fake, policy=RequestPolicy(tries=30, pause_s=0, at_once=4))
        )
        assert outcomes == {"ok": 40}
        assert fake.count("429") > 0
        assert fake.count("500") > 0
        assert set(fake.paid().values()) == {1}
        assert account.attempts == len(fake.log)


@pytest.mark.parametrize(
    "fault, outcome", [("refusal", "refused"), ("blocked", "blocked"), ("badjson", "unreadable")]
)
def test_an_answer_without_a_caption_is_an_outcome_and_paid_once(
    run: RunFolder, fault: str, outcome: str
) -> None:
    with FakeEndpoint(faults={fault: 1.0}) as fake:
        for _ in range(2):
            _, outcomes = asked(run, online(fake))
            assert outcomes == {outcome: 40}
        assert set(fake.paid().values()) == {1}
        assert len(fake.log) == 40
    assert next(read_lines(run.captions))["notes"]


def test_a_cut_answer_is_asked_once_more_with_room_for_twice_as_much(run: RunFolder) -> None:
    with FakeEndpoint(faults={"length": 1.0}) as fake:
        for _ in range(2):
            _, outcomes = asked(run, online(fake))
            assert outcomes == {"length": 40}
        assert sorted(entry["body"]["max_tokens"] for entry in fake.log) == [700] * 40 + [1400] * 40
        fake.faults = {}
        _, outcomes = asked(run, online(fake))
        assert len(fake.log) == 80


def test_a_server_that_refuses_response_format_is_asked_in_words(run: RunFolder) -> None:
    with FakeEndpoint(refuses_format=True) as fake:
        _, outcomes = asked(run, online(fake))
        assert outcomes == {"ok": 40}
        body = fake.log[0]["body"]
    assert "response_format" not in body
    assert '"enum": ["top left"' in body["messages"][1]["content"][1]["text"]


@pytest.mark.parametrize("fault", ["cut", "late", "drop"])
def test_a_broken_connection_is_asked_again_and_listed_as_perhaps_paid(
    run: RunFolder, fault: str
) -> None:
    with FakeEndpoint(faults={fault: 0.3}, seed=1) as fake:
        _, outcomes = asked(run, online(fake, policy=RequestPolicy(tries=30, pause_s=0, at_once=4)))
        assert outcomes == {"ok": 40}
        broken = {entry["request"] for entry in fake.log if entry["what"] == fault}
        times = sum(entry["what"] == fault for entry in fake.log)
    listed = read_object(run.money)["maybe_paid"]
    prints = {
        job.id: fingerprint(request_body(job, read_prompt(), Parameters("tiny")))
        for job in jobs_of(run)
    }
    assert {prints[entry["id"]] for entry in listed} == broken
    assert sum(entry["times"] for entry in listed) == times


def test_a_hanging_endpoint_is_given_up_and_charged(run: RunFolder) -> None:
    with FakeEndpoint(faults={"hang": 1.0}) as fake, Ledger(run.ledger) as ledger:
        how = online(fake, price=DEAR, limit=100.0, timeout_s=0.2, policy=RequestPolicy(2, 0.0, 4))
        account = ask(run, ledger, how, said=lambda text: None)
        assert "got no answer" in account.stopped
        assert len(ledger.maybe_paid) > 0
        assert ledger.unknown_cost == ledger.spent > 0


def test_budget_is_never_exceeded_and_used_as_far_as_possible(run: RunFolder) -> None:
    most = DEAR.of(1250, 700)  # what one request may cost once the price was measured
    with FakeEndpoint() as fake:
        for limit, times in ((0.07, 1), (0.07, 2), (0.075, 1)):
            for _ in range(times):
                account, _ = asked(run, online(fake, price=DEAR, limit=limit, until_budget=True))
            paid = sum(fake.paid().values()) * DEAR.of(*fake.usage)
            assert account.stopped == "budget"
            assert limit - most <= paid <= limit
        account, outcomes = asked(run, online(fake, price=DEAR, limit=1.0))
    assert (account.stopped, outcomes) == ("", {"ok": 40})


def test_pilot_tells_the_price_and_a_dear_run_does_not_begin(run: RunFolder) -> None:
    told: list[str] = []
    with FakeEndpoint() as fake, Ledger(run.ledger) as ledger:
        how = online(fake, price=DEAR, limit=0.075)
        account = ask(run, ledger, how, said=told.append)
        assert account.stopped.startswith("budget: $0.06 are spent")
        assert len(fake.log) == 32
    assert told == [
        "32 answers cost $0.002000 each [0.002000, 0.002000]; 8 more: $0.02 [0.02, 0.02]"
    ]


@pytest.mark.parametrize(
    "status, said", [(401, "does not accept the key"), (404, "no such address or model")]
)
def test_what_nobody_gets_stops_the_run_at_once(run: RunFolder, status: int, said: str) -> None:
    with FakeEndpoint(faults={str(status): 1.0}) as fake:
        account, outcomes = asked(run, online(fake))
        assert said in account.stopped
        assert len(fake.log) <= QUICK.at_once
    assert outcomes == {"no answer": 40}


def test_an_endpoint_that_is_down_is_told_in_one_sentence(run: RunFolder) -> None:
    with FakeEndpoint() as fake:
        pass
    account, outcomes = asked(
        run, online(fake, policy=RequestPolicy(tries=2, pause_s=0, at_once=4))
    )
    assert account.attempts <= 2 * (10 + 4), "each try of each request once"
    assert account.stopped.startswith("the last 10 requests got no answer; the last one: no conn")
    assert outcomes == {"no answer": 40}
    assert read_object(run.money)["maybe_paid"] == []


def test_an_image_that_the_endpoint_does_not_take_costs_only_itself(run: RunFolder) -> None:
    with FakeEndpoint(faults={"400": 0.3}, seed=2) as fake:
        _, outcomes = asked(run, online(fake))
        assert outcomes["rejected"] == fake.count("400") > 0
        assert outcomes["ok"] + outcomes["rejected"] == 40


def test_no_key_is_in_the_ledger_the_output_or_an_error(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(key="sk-right") as fake:
        account, _ = asked(run, online(fake, key="sk-wrong-and-secret"))
        assert "Bearer [key]" in account.stopped
        account, outcomes = asked(run, online(fake, key="sk-right"))
    assert outcomes == {"ok": 40}
    kept = "".join(path.read_text() for path in run.path.rglob("*.json*"))
    for text in (account.stopped, kept, "".join(capsys.readouterr())):
        assert "secret" not in text
        assert "sk-" not in text


def test_a_full_disk_stops_before_anything_more_is_asked(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenth write fails as on a full disk; requests that went out before were on the record."""
    writes = iter(range(100))
    real = Ledger.write

    def full(self, entries) -> None:
        if next(writes) >= 10:
            self._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        real(self, entries)

    monkeypatch.setattr(Ledger, "write", full)
    with FakeEndpoint() as fake:
        with Ledger(run.ledger) as ledger, pytest.raises(MachineFault, match="No space left"):
            ask(run, ledger, online(fake), said=lambda text: None)
        sent = len(fake.log)
        monkeypatch.setattr(Ledger, "write", real)
        with Ledger(run.ledger) as ledger:
            assert len(ledger) + len(ledger.maybe_paid) >= sent
        _, outcomes = asked(run, online(fake))
        assert outcomes == {"ok": 40}
        twice = {request for request, times in fake.paid().items() if times > 1}
    assert len(twice) <= len(read_object(run.money)["maybe_paid"]) <= QUICK.at_once


def test_rates_spread_requests_and_a_pause_holds_for_all() -> None:
    now, slept = [100.0], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    async def main() -> None:
        rate = Rate(60, clock=lambda: now[0], sleep=sleep)
        for _ in range(3):
            await rate.take()
        rate.pause(30)
        await rate.take()

    asyncio.run(main())
    assert slept == [1.0, 1.0, 30.0]


def test_retry_after_is_heeded_by_all(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(asking.Rate, "pause", lambda self, seconds: paused.append(seconds))
    with FakeEndpoint(faults={"429": 0.3}, retry_after="7") as fake:
        asked(run, online(fake, policy=RequestPolicy(tries=30, pause_s=0, at_once=4)))
        assert paused == [7.0] * fake.count("429")


def test_ledger_files_are_json_lines_that_anybody_can_read(run: RunFolder, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        asked(run, online(fake))
    lines = (run.ledger / "000001.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert (kinds.count("sent"), kinds.count("answered"), len(kinds)) == (40, 40, 80)
