"""Install what tests/slurm needs, where that is possible: python tests/install_slurm.py

With root and apt-get (Debian, Ubuntu); a few MB, under a minute. PARGO_INSTALL_SLURM=no declines.
The tests call it too, and are skipped with the reason that it gives. Exit status: 0 when all is
there, else 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DECLINE = "PARGO_INSTALL_SLURM"
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", *PACKAGES)
TIMEOUT_S = 300
# A slow mirror or another apt-get must not hold the tests up for long.
PATIENCE = (
    "-o",
    "Acquire::http::Timeout=20",
    "-o",
    "Acquire::Retries=1",
    "-o",
    "DPkg::Lock::Timeout=60",
)


def missing() -> list[str]:
    """Programs that are not on PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def why_not() -> str | None:
    """Why nothing can be installed here, None where it can."""
    if os.environ.get(DECLINE, "").lower() in ("no", "0", "false"):
        return f"{DECLINE}={os.environ[DECLINE]}"
    if os.geteuid() != 0:
        return "installing needs root"
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    return None


def apt_get(*arguments: str) -> tuple[int, str]:
    """(status, output) of an apt-get that asks nothing and comes to an end."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", *PATIENCE, *arguments]
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=environment, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = (
            error.output
            if isinstance(error.output, str)
            else (error.output or b"").decode(errors="replace")
        )
        return 124, f"{said}\nnot done after {TIMEOUT_S} s"
    return process.returncode, process.stdout


def ensure() -> tuple[str | None, str]:
    """Install what is missing, once.

    Returns (why a Slurm cannot be used or None, what was done: "" for nothing).
    """
    lacking = missing()
    if not lacking:
        return None, ""
    reason = f"{', '.join(lacking)} not installed"
    refused = why_not()
    if refused is not None:
        return f"{reason}, and not installed now: {refused}; by hand: {' '.join(INSTALL)}", ""
    updated = apt_get("update")  # the lists that are there may do even where this fails
    status, output = apt_get(*INSTALL[1:])
    if status != 0:
        lines = output.strip().splitlines() or ["no output"]
        return f"{reason}; `{' '.join(INSTALL)}` failed with status {status}: {lines[-1]}", updated[
            1
        ] + output
    still = missing()
    if still:
        return (
            f"{', '.join(still)} not on PATH after `{' '.join(INSTALL)}` (is /usr/sbin in it?)",
            output,
        )
    return None, f"installed {' '.join(PACKAGES)} for tests/slurm ({DECLINE}=no declines)"


def main() -> int:
    reason, done = ensure()
    if done:
        print(done)
    print(
        f"tests/slurm will be skipped: {reason}"
        if reason
        else "Slurm is there: tests/slurm can run"
    )
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
