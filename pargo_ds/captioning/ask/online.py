"""The captions of a run from an endpoint: a pilot, its estimate, and the rest if the budget allows."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from pargo_ds.captioning.ask.asking import Account, Asker, RequestPolicy
from pargo_ds.captioning.ask.budget import Price
from pargo_ds.captioning.ask.captions import jobs_of
from pargo_ds.captioning.ask.endpoint import Endpoint
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.pilot import PILOT, Estimate, estimate
from pargo_ds.captioning.ask.prompt import Prompt
from pargo_ds.captioning.ask.request import Parameters, requests_of
from pargo_ds.captioning.run_files import RunFolder, needed, read_lines

BUDGET = "budget"
"""What `Account.stopped` begins with when money is the reason."""


@dataclass(frozen=True)
class Online:
    """Where and how it is asked, and for how many dollars at most (all that the ledger records)."""

    address: str
    key: str | None
    prompt: Prompt
    parameters: Parameters
    price: Price
    limit: float
    policy: RequestPolicy = RequestPolicy()
    timeout_s: float = 120
    until_budget: bool = False
    """Go on when the estimate exceeds the budget, and stop when that is used up."""


def ask(
    run: RunFolder,
    ledger: Ledger,
    online: Online,
    *,
    pilot_only: bool = False,
    said: Callable[[str], None] = print,
) -> Account:
    """Ask for the captions of all selected images that the ledger does not have.

    The first 32 images, a fair sample since they are in the order of a hash, measure the price; the
    rest is asked for when the upper end of the estimate fits into the budget. An interrupt (SIGINT,
    SIGTERM) stops it after the requests in flight.
    """
    return asyncio.run(_ask(run, ledger, online, pilot_only, said))


async def _ask(
    run: RunFolder,
    ledger: Ledger,
    online: Online,
    pilot_only: bool,
    said: Callable[[str], None],
) -> Account:
    count = sum(1 for _ in read_lines(needed(run.selected, "select")))
    endpoint = Endpoint(
        online.address,
        online.key,
        timeout_s=online.timeout_s,
        connections=online.policy.at_once,
    )
    async with endpoint:
        asker = Asker(
            endpoint,
            ledger,
            online.prompt,
            online.parameters,
            online.price,
            online.limit,
            online.policy,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, asker.stop, "interrupted")
        await asker.ask_all(itertools.islice(jobs_of(run), PILOT))
        found = measured(run, ledger, online, count)
        if found is not None:
            said(found.said())
        if not (asker.account.stopped or pilot_only):
            asker.account.stopped = _too_dear(found, online, ledger)
        if not (asker.account.stopped or pilot_only):
            await asker.ask_all(itertools.islice(jobs_of(run), PILOT, None))
        return asker.account


def measured(run: RunFolder, ledger: Ledger, online: Online, count: int) -> Estimate | None:
    """Return the estimate from the pilot's answers; None when there is none."""
    costs = []
    for job in itertools.islice(jobs_of(run), PILOT):
        requests = requests_of(job, online.prompt, online.parameters, ledger.cut)
        answers = [ledger.answer(key) for key, _ in requests if key in ledger]
        if answers:
            costs.append(sum(answer["cost"] for answer in answers))
    if not costs:
        return None
    return estimate(costs, count - max(len(ledger), len(costs)))


def _too_dear(found: Estimate | None, online: Online, ledger: Ledger) -> str:
    """Why the rest is not asked for; "" when it is."""
    if found is None or online.until_budget:
        return ""
    needed_dollars = ledger.spent + found.total.high
    if needed_dollars <= online.limit:
        return ""
    return (
        f"{BUDGET}: ${ledger.spent:.2f} are spent and the rest may cost ${found.total.high:.2f}, "
        f"together more than --budget {online.limit:g}. Give a larger one, select fewer images, or "
        "give --until-budget to stop when it is used up"
    )


def pilot_sides(
    run: RunFolder, ledger: Ledger, online: Online, sides: list[int], said: Callable[[str], None]
) -> Account:
    """Measure the price at several sizes of the image that is sent: a pilot for each."""
    account = Account()
    for side in sides:
        sized = replace(online, parameters=replace(online.parameters, longest_side=side))
        said(f"longest side {side}:")
        account = ask(run, ledger, sized, pilot_only=True, said=said)
        if account.stopped:
            break
    return account
