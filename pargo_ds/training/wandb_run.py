"""The run at wandb: one id for all starts, and every step there, also when wandb's own process was
ended.

wandb hands figures to a process of its own. A signal to all processes of a job ends that one at
once, together with what it has not written yet; offline that was a whole segment (wandb 0.31.0;
github.com/wandb/wandb/issues/9963). So `wandb_state.json` in the run's folder says up to which step
wandb was closed in good order, and the next start of wandb is given the later lines of
metrics.jsonl again.

A start that fails (no network, a wrong key) costs at most `reporting.wandb_timeout_s`, and wandb
goes on offline. What wandb's own environment variables say goes before the run file.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pargo_ds.config import RunConfig
from pargo_ds.files.whole_file import write_whole

log = logging.getLogger("pargo_ds")
ID, STATE = "wandb_id", "wandb_state.json"
OFFLINE, CUT_OFF = "offline-run-", "cut-off-"
Mode: TypeAlias = Literal["online", "offline", "disabled"]
RESTARTS = 3
"""How often wandb is started again within one process."""
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""Values of WANDB_MODE -> ours."""
INSTEAD = {
    "online": "it goes on offline (to send the figures later: wandb sync RUN/wandb/offline-run-*)",
    "offline": "this start of the run goes on without it, metrics.jsonl has the figures",
}
SERVER = "https://api.wandb.ai"


class WandbRun:
    """A wandb run that outlives its process, and whose faults never end the training.

    Args:
        run: the run file.
        metrics: metrics.jsonl, already cut back to `first_step`.
        first_step: steps done before this start.
        total_steps: the run's last step, after which nobody would make up for what is missing.
    """

    def __init__(self, run: RunConfig, metrics: Path, first_step: int, total_steps: int) -> None:
        self.run, self.metrics, self.total_steps = run, metrics, total_steps
        self.mode: Mode = mode_of(run)
        self.last, self.restarts = first_step, RESTARTS
        self.held = 0
        """The last step that wandb surely has. It may lie behind `first_step`: a rank died before
        the checkpoint of these steps was whole, and they are trained again.
        """
        self.wandb: Any = None
        self.id: str | None = None
        if self.mode != "disabled":
            self.id = self._own_id()
            self.wandb = self._start_or_leave(first_step)

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """Report a step whose line metrics.jsonl already has, unless an earlier start did (wandb's
        steps only grow).
        """
        self.last = step
        if step <= self.held:
            return
        if self.wandb is not None:
            self._guarded(lambda: self.wandb.log(_numbers(figures), step=step))
        elif self.mode != "disabled" and self.restarts > 0:
            self._restart()

    def close(self) -> None:
        """Close wandb in good order. One that was ended is started again only after the last step:
        before that, the next start makes up for it, and a process that was asked to stop has no
        time to lose.
        """
        if self.mode == "disabled" or self._finished():
            return
        if self.restarts > 0 and self.last == self.total_steps:
            self._restart()
        if not self._finished():
            _forget_process()

    def _finished(self) -> bool:
        return self.wandb is not None and self._guarded(self._finish)

    def _finish(self) -> None:
        self.wandb.finish()
        self._note(max(self.last, self.held), None)

    def _own_id(self) -> str:
        """The id lives in the run's folder, so that each start continues the same wandb run."""
        path = self.run.run_dir / ID
        known = ""
        if path.is_file():
            known = path.read_text().strip()  # empty after a kill or on a full disk
        if not known:
            known = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
            path.write_text(known)
        return known

    def _start_or_leave(self, first_step: int) -> Any:
        """Start wandb, offline where it cannot be online; None where it cannot be started at
        all.
        """
        while self.mode != "disabled":
            try:
                return self._start(first_step)
            except Exception as error:  # whatever wandb raises: metrics.jsonl has the figures
                _forget_process()
                log.warning(
                    "wandb cannot be %s (%s); %s", self.mode, _said(error), INSTEAD[self.mode]
                )
                self.mode = "offline" if self.mode == "online" else "disabled"
        return None

    def _start(self, first_step: int) -> Any:
        """wandb.init, and the lines that wandb may not have."""
        import wandb

        self.held = self._held(first_step)
        limit = self.run.reporting.wandb_timeout_s
        started = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.run.reporting.wandb_project,
            name=os.environ.get("WANDB_NAME") or self.run.name,
            id=self.id,
            resume="allow" if self.mode == "online" else None,
            mode=self.mode,
            dir=str(self.run.run_dir),
            config=self.run.model_dump(mode="json"),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                init_timeout=limit,
                finish_timeout=limit,
            ),
        )
        self._note(self.held, Path(started.dir).parent.name)
        for step, figures in _lines(self.metrics):
            # A server that knows the run tells its next step.
            if step > self.held and step >= started.step:
                started.log(_numbers(figures), step=step)
        if self.held > first_step:
            log.info(
                "wandb has the steps up to %d already; those are not reported again", self.held
            )
        return started

    def _held(self, first_step: int) -> int:
        """The last step that an earlier start has given it. What one that was cut off has written
        offline is set aside: its steps are reported again.
        """
        path = self.run.run_dir / STATE
        if not path.is_file():  # noted now: a start that fails leaves a folder, too
            started_before = any(self.run.run_dir.glob("wandb/*run-*"))
            self._note(first_step if started_before else 0, None)
        state = json.loads(path.read_text())
        folder = self.run.run_dir / "wandb" / Path(state["open"] or "none").name
        if folder.name.startswith(OFFLINE) and folder.is_dir():
            folder.rename(folder.with_name(CUT_OFF + folder.name))
        return int(state["step"])

    def _note(self, step: int, folder: str | None) -> None:
        noted = json.dumps({"step": step, "open": folder}) + "\n"
        write_whole(self.run.run_dir / STATE, noted)

    def _guarded(self, action: Callable[[], Any]) -> bool:
        """Whether it worked; a wandb that failed is let go."""
        try:
            action()
        except Exception as error:  # whatever wandb raises: metrics.jsonl has the figures
            log.warning("wandb stopped (%s); metrics.jsonl goes on", _said(error))
            self.wandb = None
            return False
        return True

    def _restart(self) -> None:
        self.restarts -= 1
        _forget_process()
        self.wandb = self._start_or_leave(self.last)
        if self.wandb is not None:
            log.warning("wandb was started again")


def _forget_process() -> None:
    """Without it wandb would speak to the process that is gone again when this one exits, and print
    a traceback.
    """
    try:
        import wandb

        wandb.teardown()
    except Exception as error:  # what it raises depends on how that process went
        log.debug("wandb.teardown: %s", _said(error))


def _said(error: Exception) -> str:
    """One line without the key, which wandb's messages might repeat."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    key = os.environ.get("WANDB_API_KEY")
    if key:
        text = text.replace(key, "(the key)")
    return text


def mode_of(run: RunConfig) -> Mode:
    """Return online, offline or disabled: what WANDB_MODE or WANDB_DISABLED say, else what the run
    file says; `auto` is online where wandb has a key.
    """
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "t", "1", "yes", "y", "on"):
        return "disabled"
    said = os.environ.get("WANDB_MODE", "").strip()
    if said and said.lower() not in MODES:
        log.warning(
            "WANDB_MODE is %s, expected one of %s; wandb is left out", said, ", ".join(MODES)
        )
        return "disabled"
    mode = MODES[said.lower()] if said else run.reporting.wandb
    if mode != "auto":
        return mode
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether wandb will find a key, in the places where it looks, for the server that it will
    speak to.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # no file, no text, no address
        return False


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Without those that are no numbers."""
    return {name: value for name, value in figures.items() if value is not None}


def _lines(metrics: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in metrics.read_text().splitlines():
        figures = json.loads(line)
        yield figures.pop("step"), figures
