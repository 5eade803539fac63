"""The run's folder: config.yaml, logs, metrics.jsonl, checkpoints, DONE (DESIGN, "A run's
folder").
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
from pathlib import Path
from typing import IO, Any

from pargo_ds import distributed
from pargo_ds.config import RunConfig, load_config
from pargo_ds.errors import ConfigError, RunBusyError
from pargo_ds.files.lock import lock_if_possible
from pargo_ds.files.whole_file import write_whole
from pargo_ds.settings_file import format_yaml

log = logging.getLogger("pargo_ds")
LOCK = ".lock"
LOCK_TIMEOUT_S = 60
"""Loader processes of a killed run hold its lock a little longer than the run itself."""

# Sections that may change between a run and its continuation: they do not touch what is learned.
FREE_TO_CHANGE = (
    *("output", "checkpoint", "survival", "validation", "evaluation", "reporting", "attention"),
    *("train.activation_checkpointing", "train.zero3_gather", "train.compile"),
    "batch.packs_per_forward",
    *("data.workers", "data.validation", "data.cache", "data.cache_limit"),
    "data.train.path",  # the saved data position knows the shards by their index, wherever they lie
)


def make_run_folder(run: RunConfig) -> None:
    """Create the folder. Raises ConfigError where that is not possible."""
    try:
        run.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(run.run_dir, error) from error


def check_writable(run: RunConfig) -> None:
    """Write a byte where this rank will write; a run that could not save must not train at all.

    Raises ConfigError naming the folder: read-only, of another user, or on a full disk.
    """
    for folder in (run.run_dir, checkpoints_dir(run), run.run_dir / "logs"):
        if not folder.exists():
            continue
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is a file, where the run makes a folder: move it away, or choose another name"
            )
        probe = folder / f".writable_{distributed.rank():05d}"
        try:
            probe.write_bytes(b"1")
            probe.unlink()
        except OSError as error:
            raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be written ({error.strerror}), and a run writes its checkpoints there: make the folder "
        "writable on every node, make room, or choose another place (--set output=FOLDER)"
    )


def open_run_folder(run: RunConfig) -> None:
    """Create the folder and write config.yaml; ConfigError when it belongs to a run that learns
    something else.
    """
    make_run_folder(run)
    path = run.run_dir / "config.yaml"
    if path.is_file():
        before = load_config(path)
        changed = differences(before.model_dump(mode="json"), run.model_dump(mode="json"))
        if changed:
            lines = []
            for key, (old, new) in changed.items():
                lines.append(f"  - {key}: {old!r} before, {new!r} now")
            shown = "\n".join(lines)
            raise ConfigError(
                f"{run.run_dir} holds a run with other settings:\n{shown}\n"
                "give this run another name (--set name=...), or put these settings back"
            )
    write_whole(path, format_yaml(run.model_dump(mode="json")))


def lock_run_folder(run: RunConfig) -> IO[str]:
    """Lock the run's folder for as long as the returned file is open; the system frees it, also
    after kill -9.

    Two processes that train the same run would remove each other's checkpoints. Raises RunBusyError
    naming the holder when it does not let go within a minute.
    """
    file = open(run.run_dir / LOCK, "a+")  # noqa: SIM115 (open as long as the run)
    if not lock_if_possible(file, LOCK_TIMEOUT_S):
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise RunBusyError(
            f"{run.run_dir} is being trained by another process ({holder}); stop that one first "
            f"(touch {shlex.quote(str(run.run_dir / 'STOP'))}), or give this run another name"
        )
    file.truncate(0)
    file.write(f"host {platform.node()}, process {os.getpid()}\n")
    file.flush()
    return file


def differences(before: Any, now: Any, place: str = "") -> dict[str, tuple[Any, Any]]:
    """Return (before, now) by the dotted keys whose values differ, but for those in
    FREE_TO_CHANGE.
    """
    if place in FREE_TO_CHANGE or before == now:
        return {}
    found: dict[str, tuple[Any, Any]] = {}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        # The entries of a list share their place, so that "data.train.path" is the path of any
        # stream.
        for old, new in zip(before, now, strict=True):
            found |= differences(old, new, place)
        return found
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            inner = f"{place}.{key}" if place else key
            found |= differences(before.get(key), now.get(key), inner)
        return found
    return {place: (before, now)}


def done_file(run: RunConfig) -> Path:
    """Return the path of the file that exists only when the run has finished."""
    return run.run_dir / "DONE"


def checkpoints_dir(run: RunConfig) -> Path:
    """Return the folder of the run's checkpoints."""
    return run.run_dir / "checkpoints"
