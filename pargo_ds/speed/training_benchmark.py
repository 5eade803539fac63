"""Our trainer beside Hugging Face's, in turns on one machine: same model, weights, data, samples a
step and ZeRO stage.

Each system has its own processes, which wait while another has its turn; a turn is an epoch, so all
see the same samples.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from pargo_ds.config import RunConfig
from pargo_ds.speed.training_rows import SYSTEMS, Row, rows_of
from pargo_ds.speed.training_turns import Asked, Turn, added


def measure(
    runs: dict[str, RunConfig],
    ranks: int,
    turns: int,
    systems: Sequence[str] = SYSTEMS,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Return the rows of each data set's run, in `turns` turns on `ranks` processes; `systems`
    are beside ours, which is always there.

    Raises RuntimeError naming the log where a process of a system has failed.
    """
    rows = []
    for data, run in runs.items():
        found, parts = turns_of(run, ranks, turns, systems, say)
        rows += rows_of(data, found, parts)
    return rows


def turns_of(
    run: RunConfig, ranks: int, turns: int, others: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, list[Turn]], dict[str, Turn]]:
    """Return all ranks' turns of each system, and for each one a step by part. Raises as `measure`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes inherit it
    wanted = [system for system in SYSTEMS if system == "ours" or system in others]
    found: dict[str, list[Turn]] = {system: [] for system in wanted}
    parts = {}
    systems: dict[str, System] = {}
    try:
        for system in wanted:
            systems[system] = System(run, system, ranks)
        for one in systems.values():
            one.wait_until_ready()
        for one in systems.values():
            one.turn(Asked(steps=1))  # DeepSpeed records the order of modules
        for number in range(turns):
            for system in wanted:
                turn = systems[system].turn(Asked())
                found[system].append(turn)
                say(
                    f"{run.name}, turn {number + 1}, {system}: {len(turn.sample_ids)} samples in {turn.seconds:.1f} s"
                    f", CPU {turn.cpu_s:.1f} s"
                )
        for system in wanted:
            parts[system] = systems[system].turn(Asked(steps=1, by_part=True))
    finally:
        for one in systems.values():
            one.end()
    return found, parts


class System:
    """The processes of one trainer, one for each rank, which wait until a turn is asked for.

    `wait_until_ready` and `turn` raise RuntimeError naming the log when one of them has failed.
    """

    def __init__(self, run: RunConfig, system: str, ranks: int) -> None:
        self.system = system
        own = run.model_copy(update={"output": str(Path(run.output) / system)})
        self.log = own.run_dir / "benchmark.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self.pipes: list[Connection] = []
        self.workers = []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            self.pipes.append(mine)
            arguments = (theirs, own, system, rank, ranks, port, self.log)
            # Not daemons, which could not have loader processes.
            self.workers.append(context.Process(target=_work, args=arguments))
            self.workers[-1].start()
            theirs.close()

    def wait_until_ready(self) -> None:
        """Return when all ranks have their model and data."""
        self._hear()

    def turn(self, asked: Asked) -> Turn:
        """Take a turn of all ranks."""
        for pipe in self.pipes:
            pipe.send(asked)
        return added(self._hear())

    def end(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()  # they end when nobody asks any more
        for worker in self.workers:
            worker.join(timeout=10)
            worker.kill()

    def _hear(self) -> list[Turn]:
        """What each rank says next. A rank that failed is noticed even while others wait for it."""
        said: dict[int, Turn] = {}
        while len(said) < len(self.pipes):
            waited_for = {r: pipe for r, pipe in enumerate(self.pipes) if r not in said}
            speaking = wait(list(waited_for.values()))
            for rank, pipe in waited_for.items():
                if pipe in speaking:
                    said[rank] = self._take(pipe)
        return [said[rank] for rank in sorted(said)]

    def _take(self, pipe: Connection) -> Turn:
        try:
            return pipe.recv()
        except EOFError:
            raise RuntimeError(
                f"a process of {self.system} {self._failure()}; its log is {self.log}, which ends with:\n"
                + self.log.read_text(errors="replace")[-2000:]
            ) from None

    def _failure(self) -> str:
        for worker in self.workers:
            worker.join(timeout=1)
        if any(worker.exitcode == -signal.SIGKILL for worker in self.workers):
            return "was killed, as it is when the machine has no memory left"
        return "has failed"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _work(
    pipe: Connection, run: RunConfig, system: str, rank: int, ranks: int, port: int, log: Path
) -> None:
    """One rank of one system: prepares it, then takes turns until nobody asks for any more."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    # A spawned process would spawn its loader processes too, which then import everything anew at
    # each epoch (5 s of CPU); under a launcher they are forked.
    multiprocessing.set_start_method("fork", force=True)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from pargo_ds.training.engine import deepspeed_settings, start_distributed

    device = start_distributed()
    from pargo_ds.speed import hf_trainer, our_trainer
    from pargo_ds.speed.training_turns import Turns

    settings = deepspeed_settings(run, ranks)
    turns = Turns(pipe, device)
    try:
        if system == "ours":
            our_trainer.train(run, device, settings, turns)
        else:
            hf_trainer.train(run, device, settings, turns, system == "hf_trainer_grouped")
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        # What a killed collective would say at the interpreter's end is of no use to anyone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
