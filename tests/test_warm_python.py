"""warm_python.py behaves like the interpreter whose place it takes in the tests."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import ON_CPU, ROOT, warm_python

SAYS = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("GIVEN"), __name__, sys.path[0])
print("an error", file=sys.stderr)
sys.exit(3)
"""
WARM = "import sys; assert 'deepspeed' in sys.modules; "


def run(*arguments: str, python: str | None = None, **environment: str):
    """The finished process, by the warm Python if no other is named."""
    return subprocess.run(
        [python or str(warm_python().path), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ON_CPU, **environment},
        cwd=ROOT,
        timeout=60,
    )


def start(code: str) -> subprocess.Popen:
    """A warm process that has printed its first line, its id."""
    process = subprocess.Popen(
        [str(warm_python().path), "-c", f"import os; print(os.getpid(), flush=True); {code}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ON_CPU},
    )
    process.pid_within = int(process.stdout.readline())
    return process


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_arguments_folder_environment_output_and_status_are_those_of_python(kind, tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    target = {"-c": ["-c", SAYS], "-m": ["-m", "says"], "script": [str(tmp_path / "says.py")]}
    if kind == "-m":
        (tmp_path / "pargo_ds").symlink_to(ROOT / "pargo_ds")
    given = {"GIVEN": "word", **({"PYTHONPATH": str(tmp_path)} if kind == "-m" else {})}
    warm, ordinary = (
        run(*target[kind], "a", "b c", python=python, **given) for python in (None, sys.executable)
    )
    assert (warm.returncode, warm.stdout, warm.stderr) == (
        ordinary.returncode,
        ordinary.stdout,
        ordinary.stderr,
    )


def test_it_is_warm_and_what_it_starts_is_too():
    inner = WARM + "print('inner')"
    outer = (
        WARM + f"import subprocess; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    )
    assert run("-c", outer).stdout == "inner\n"


def test_a_variable_that_is_read_at_import_leads_to_the_ordinary_interpreter():
    process = run("-c", "import sys; print('deepspeed' in sys.modules)", HF_HOME="/elsewhere")
    assert process.stdout == "False\n", process.stderr


def test_faults_and_signals_end_both_alike():
    failed = run("-c", "raise ValueError('found')")
    assert failed.returncode == 1
    assert failed.stderr.endswith("ValueError: found\n")
    assert run("-c", "import os; os.kill(os.getpid(), 11)").returncode == -signal.SIGSEGV
    waiting = start("import time; time.sleep(60)")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == -signal.SIGTERM
    handled = start_blocking_usr1()
    handled.send_signal(signal.SIGUSR1)
    assert handled.wait(20) == 7


def start_blocking_usr1() -> subprocess.Popen:
    """A warm process that takes SIGUSR1 as a request to end with status 7."""
    wait = "import signal; mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
    process = start(
        wait + "print('blocked', flush=True); signal.sigwait([signal.SIGUSR1]); os._exit(7)"
    )
    assert process.stdout.readline() == "blocked\n"
    return process


def test_kill_of_the_client_ends_what_runs():
    process = start("import time; time.sleep(60)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{process.pid_within}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
