"""A Python that has already imported what training imports, and forks for each command.

Importing torch, DeepSpeed and transformers takes 11 s of CPU, a run on two ranks does it three
times, and the tests start more than a hundred. `WarmPython.path` takes what `python` takes (`-m
MODULE`, `-c CODE`, a script) and behaves like it: output, exit status, working directory,
environment, signals; what it starts by `sys.executable` is warm as well. Where it could not be the
same (other options of the interpreter, a variable that a library reads when it is imported) the
ordinary interpreter takes its place (warm_client.py). A command whose client is killed is killed
with all of its session; the demo and the kills of builds and conversions start ordinary ones.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import PIL.Image

ROOT = Path(__file__).parents[1]

# What a run imports before it ends. None of it may start a thread: a forked process has only one.
PRELOADED = [
    "numpy",
    "PIL.Image",
    "yaml",
    "networkx",
    "simplejpeg",
    "torch",
    "torch.distributed.run",
    "torch.distributed.elastic.multiprocessing",
    "torch._inductor.compile_fx",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "timm",
    "deepspeed",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.launcher.launch",
    "streaming",
    "pargo_ds.training.trainer",
    "pargo_ds.assembly.model",
    "pargo_ds.assembly.calibration",
    "pargo_ds.convert.zero.zero_to_hf",
    "pargo_ds.convert.trial.trial",
    "pargo_ds.checkpoint.frozen",
]
# Libraries read these when they are imported: a command must have them as this process has.
READ_AT_IMPORT = (
    *("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DS_"),
    *("CUDA_", "TORCH", "PYTORCH_", "LD_", "MALLOC_", "HOME", "XDG_", "TRITON_", "NUMBA_"),
)  # fmt: skip
# Exceptions: a process group reads its own when it starts, accelerate's means CUDA, and
# output is flushed with each line anyway. Inductor sets where it keeps what it compiled.
READ_LATER = (
    *("TORCHELASTIC_", "TORCH_NCCL_", "TORCH_FR_", "PYTORCH_NVML_BASED_CUDA_CHECK"),
    *("PYTHONUNBUFFERED", "TORCHINDUCTOR_CACHE_DIR"),
)


class WarmPython:
    """The command `path` and the serving processes, one a host; all end with this process."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.path = folder / "python"
        self.servers: list[subprocess.Popen] = []
        client = Path(__file__).with_name("warm_client.py")
        self.path.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -S "{client}" "{sys.executable}" '
            f'"{folder}/$(uname -n)" "$@"\n'
        )
        self.path.chmod(0o755)

    def start(self, *prefix: str, wait: bool = True) -> None:
        """Serve this host, or the one that the command `prefix` enters. Until it serves, `path` is
        the ordinary interpreter.
        """
        command = [*prefix, sys.executable, __file__, str(self.folder), str(self.path)]
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
        )
        self.servers.append(server)
        if wait:
            assert server.stdout is not None
            server.stdout.readline()

    def close(self) -> None:
        """End the serving processes and what they still run."""
        for server in self.servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()


class Server:
    """Forks a process per request and tells the client how it ends."""

    def __init__(self, listening: socket.socket, environment: dict[str, str]) -> None:
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}
        self.listening = listening
        self.environment = environment
        self.woken, wake = socket.socketpair()
        for end in (self.woken, wake):
            end.setblocking(False)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno())
        for source in (listening, sys.stdin, self.woken):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> dict | None:
        """Serve until this process's stdin ends. Returns the request in a forked process."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    signal.set_wakeup_fd(-1)
                    for pid in list(self.clients):
                        self.kill(pid)
                    return None
                if key.fileobj is self.listening:
                    request = self.accept()
                    if request is not None:
                        return request
                elif key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self.reap()
                elif key.data in self.clients:  # the client has gone: so does what it asked for
                    self.kill(key.data)

    def accept(self) -> dict | None:
        """Take one request. Returns it in the forked process, and nothing in this one."""
        client, _ = self.listening.accept()
        message, descriptors = b"", []
        while not message.endswith(b"\n"):
            part, more, _, _ = socket.recv_fds(client, 1 << 20, 4)
            message += part
            descriptors += more
            if not part:
                client.close()
                return None
        request = json.loads(message)
        other_imports = read_at_import(request["environment"]) != self.environment
        pid = 0
        if not other_imports:
            pid = os.fork()
            if pid == 0:
                self.become(descriptors)
                return request
        for descriptor in descriptors:
            os.close(descriptor)
        client.sendall(f"{pid}\n".encode())  # 0: the client becomes the ordinary interpreter
        if other_imports:
            client.close()
            return None
        self.clients[pid] = client
        self.selector.register(client, selectors.EVENT_READ, pid)
        return None

    def become(self, descriptors: list[int]) -> None:
        """In the forked process: nothing of the server is left but what is imported."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for end in (self.woken, self.wake, self.listening, *self.clients.values()):
            end.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)

    def kill(self, pid: int) -> None:
        """End a process and what it started, as the kill that ended its client would have."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def reap(self) -> None:
        while self.clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            client = self.clients.pop(pid)
            self.selector.unregister(client)
            with contextlib.suppress(BrokenPipeError):
                client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            client.close()


def read_at_import(environment: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """The variables that libraries read when they are imported."""
    read = {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and not name.startswith(READ_LATER)
    }
    folders = [folder for folder in import_folders(read) if not is_of_project(folder)]
    return {**read, "PYTHONPATH": os.pathsep.join(folders)}


def import_folders(environment: dict[str, str] | os._Environ[str]) -> list[str]:
    """The folders of PYTHONPATH."""
    return [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]


def is_of_project(folder: str) -> bool:
    """Whether this project's package lies there, by itself or by a link, as in the Slurm tests."""
    package = Path(folder) / "pargo_ds"
    return package.exists() and package.samefile(ROOT / "pargo_ds")


def run(request: dict, warm: str) -> None:
    """Do in this forked process what `python ARGUMENTS` does."""
    os.chdir(request["folder"])
    rest = [folder for folder in sys.path[1:] if folder not in import_folders(os.environ)]
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = warm
    tempfile.tempdir = None
    random.seed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    kind, target, *arguments = request["command"]
    sys.argv = ["-c" if kind == "-c" else target, *arguments]
    first = {"-c": "", "-m": os.getcwd(), "script": str(Path(target).parent)}[kind]
    sys.path[:] = [first, *import_folders(os.environ), *rest]
    if kind == "-c":
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(target, "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.modules.pop(target, None)
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def end(work: Callable[[], None]) -> NoReturn:
    """Do the work and end as Python does, but for taking what is imported apart (1.5 s)."""
    status = 0
    try:
        work()
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Import, listen in the folder that is given, serve; in a forked process, run."""
    folder, warm = sys.argv[1:]
    address = Path(folder) / os.uname().nodename
    sys.path.pop(0)
    sys.path.insert(0, "")
    environment = read_at_import(os.environ)  # some libraries change it when they are imported
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print while they are imported
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # another version's; a run imports what it needs
            importlib.import_module(name)
    PIL.Image.init()
    gc.collect()
    gc.freeze()  # what is imported stays in pages that all processes share
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads after the imports: a fork would lose them"
    listening = socket.socket(socket.AF_UNIX)
    address.unlink(missing_ok=True)  # of one that was killed
    listening.bind(str(address))
    listening.listen(64)
    os.write(output, b"listening\n")
    os.close(output)
    request = Server(listening, environment).serve()
    end(lambda: run(request, warm) if request is not None else None)


if __name__ == "__main__":
    main()
