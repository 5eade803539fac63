"""A real Slurm of two nodes on loopback, and a project folder whose templates are submitted to it.

Two slurmd of one machine pretend 64 CPUs each. Each lives in its own mount and UTS namespace, so
that `node1` is a name there and the processes of a node can be found, and ended, together.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import install_slurm
import pytest
import yaml
from tiny import ROOT, merged, metrics
from warm_python import WarmPython

SLURM_CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=20
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldParameters=preempt_send_user_signal
NodeName=node[1-2] NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=64 SocketsPerBoard=2 CoresPerSocket=32 \
ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:h100:8 Feature=h100 State=UNKNOWN
PartitionName=gpu  Nodes=ALL Default=YES MaxTime=7-0 State=UP PriorityTier=10 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=7-0 State=UP PriorityTier=20 PreemptMode=OFF
"""
WAIT_S = 240


def why_not(say: Callable[[str], None]) -> str | None:
    """Why a real Slurm cannot be started here; what is missing is installed where that is possible,
    and `say` told.
    """
    if os.geteuid() != 0:
        return "a cluster of several nodes on one machine needs root"
    reason, done = install_slurm.ensure()
    if done:
        say(done)
    return reason


def free_ports() -> list[int]:
    """Three ports in a row that nobody uses."""
    while True:
        first = random.randrange(11000, 19000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 3):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + 3))


def wait_for(
    found: Callable[[], object], what: str, explain: Callable[[], str], seconds: float = WAIT_S
) -> object:
    """Poll until `found` gives something true; fails with `explain` when it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(0.2)
    pytest.fail(f"not within {seconds:.0f} s: {what}\n{explain()}")


class Cluster:
    """slurmctld, munged and two slurmd, all ended with this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "etc/slurm.conf"
        self.scratch = folder / "scratch"
        self.processes: dict[str, subprocess.Popen] = {}
        self.namespaces: dict[str, str] = {}
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "PARGO_"))
        }
        self.environment.pop("TMPDIR", None)  # the jobs' is SITE_SCRATCH
        self.environment["SLURM_CONF"] = str(self.conf)
        self.environment["OMP_NUM_THREADS"] = "1"
        (folder / "python").mkdir()
        self.python = WarmPython(
            folder / "python",
            {**self.environment, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        )

    def start(self) -> None:
        for name in ("etc", "log", "state", "spool", "munge", "dev", "scratch"):
            (self.folder / name).mkdir(parents=True)
        self.python.start()
        for number in range(8):  # GPUs must be character devices
            (self.folder / f"dev/nvidia{number}").symlink_to("/dev/null")
        host = socket.gethostname().split(".")[0]
        text = SLURM_CONF.format(
            host=host, ports=free_ports(), folder=self.folder, first_job=random.randrange(1, 9000)
        )
        self.conf.write_text(text)
        (self.folder / "etc/gres.conf").write_text(
            f"NodeName=node[1-2] Name=gpu Type=h100 File={self.folder}/dev/nvidia[0-7]\n"
        )
        (self.folder / "etc/hosts").write_text(f"127.0.0.1 localhost {host} node1 node2\n")
        key = self.folder / "munge/key"
        key.write_bytes(random.randbytes(128))
        key.chmod(0o600)
        files = [f"--{name}={self.folder}/munge/{file}" for name, file in (
            ("key-file", "key"), ("socket", "munge.sock"), ("pid-file", "munged.pid"), ("log-file", "munged.log"),
            ("seed-file", "seed"))]  # fmt: skip
        self.launch("munged", ["munged", "--foreground", *files])
        wait_for((self.folder / "munge/munge.sock").exists, "munge's socket", self.logs, 20)
        self.launch("slurmctld", ["slurmctld", "-D", "-f", str(self.conf), "-c"])
        for node in ("node1", "node2"):
            self.start_node(node)
        self.wait_idle()

    def launch(self, name: str, command: list[str]) -> None:
        """Start a daemon that the kernel ends when this process ends, however that comes about."""
        log = (self.folder / f"log/{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdout=log,
            stderr=log,
            env=self.environment,
            cwd="/",
        )

    def start_node(self, node: str) -> None:
        """Power on: a node has names of its own, and shared memory and a scratch disk of its own,
        where ranks look for their neighbours.
        """
        own = f"mount --bind {self.folder}/etc/hosts /etc/hosts && hostname {node}"
        own += f" && mount -t tmpfs none /dev/shm && mount -t tmpfs none {self.scratch}"
        daemon = f"exec slurmd -D -f {self.conf} -c -N {node}"
        self.launch(node, ["unshare", "--mount", "--uts", "bash", "-c", f"{own} && {daemon}"])
        own = os.readlink("/proc/self/ns/uts")
        process = Path(f"/proc/{self.processes[node].pid}/ns/uts")
        self.namespaces[node] = str(
            wait_for(
                lambda: process.readlink() != Path(own) and os.readlink(process),
                node,
                self.logs,
                20,
            )
        )

        pid = str(self.processes[node].pid)
        self.python.start("nsenter", "--target", pid, "--mount", "--uts", wait=False)

    def kill_node(self, node: str) -> None:
        """Power off: every process of the node is gone at once."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns/uts") == self.namespaces[node]:
                    os.kill(int(folder.name), signal.SIGKILL)
        self.processes[node].wait(20)

    def stop(self) -> None:
        for node in self.namespaces:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.kill_node(node)
        for process in self.processes.values():
            process.kill()
            process.wait(20)
        self.python.close()

    def clear(self) -> None:
        """Cancel what runs or waits, and wait until both nodes are idle."""
        self.command("scancel", "--user=root")
        self.wait_idle()

    def wait_idle(self) -> None:
        """Until both nodes can take a job."""
        wait_for(
            lambda: (
                self.command(
                    "sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N", check=False
                ).split()
                == ["node1", "node2"]
            ),
            "two idle nodes",
            self.logs,
        )

    def command(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Output of a Slurm command."""
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=cwd,
            timeout=120,
            check=False,
        )
        if check and process.returncode:
            pytest.fail(
                f"{' '.join(command)}: status {process.returncode}\n{process.stdout}{process.stderr}"
            )
        return process.stdout

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, "" when the job is not known."""
        words = self.command("scontrol", "show", "job", "-o", job, check=False).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in (self.folder / "log").iterdir()
        )


class Project:
    """A copy of the scripts beside this project's code, with a site.env for the small cluster."""

    SITE = {
        "PARTITION": "gpu", "NODES": "2", "GPUS_PER_NODE": "0", "RANKS_PER_NODE": "1", "CPUS_PER_TASK": "1",
        "MEMORY": "1000", "EXCLUSIVE": "yes", "TIME": "30", "SMALL_CPUS": "1", "SMALL_MEMORY": "1000",
        "SMALL_TIME": "30", "SIGNAL": "USR1", "SIGNAL_LEAD": "60", "MAX_RESTARTS": "1", "PREFLIGHT": "yes",
        "PREFLIGHT_FREE_GB": "0", "LOGS": "logs",
    }  # fmt: skip

    def __init__(self, folder: Path, cluster: Cluster, tiny_run: dict) -> None:
        self.folder, self.cluster, self.tiny_run = folder, cluster, tiny_run
        folder.mkdir()
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("site.env"))
        for name in ("pargo_ds", "tools", "ds_configs"):
            (folder / name).symlink_to(ROOT / name)
        self.site()

    def site(self, **changes: str) -> None:
        """Write site.env."""
        lines = [
            f"SITE_{name}={value}\n"
            for name, value in {
                **self.SITE,
                "PYTHON": str(self.cluster.python.path),
                "SCRATCH": str(self.cluster.scratch),
                **changes,
            }.items()
        ]
        (self.folder / "slurm/site.env").write_text("".join(lines))

    def run_file(self, name: str, **changes: object) -> Path:
        """A tiny run that saves every second step and reports into an offline wandb."""
        defaults = {
            "name": name,
            "output": str(self.folder / "runs"),
            "train": {"steps": 40},
            "checkpoint": {"every": 2},
            "reporting": {"wandb": "offline"},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(merged(self.tiny_run, defaults), changes)))
        return path

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def submit(self, script: str, *arguments: str | Path) -> str:
        """The last job id that a script of slurm/ prints."""
        output = self.cluster.command(f"slurm/{script}", *map(str, arguments), cwd=self.folder)
        return output.split()[-1]

    def explain(self, job: str, run: str | None = None) -> str:
        """All that tells how a job went."""
        logs = sorted((self.folder / "logs").glob("*.out"))
        texts = [self.cluster.command("scontrol", "show", "job", job, check=False)]
        texts += [
            f"--- {path.name}\n{path.read_text()[-6000:]}" for path in logs if job in path.name
        ]
        if run is not None and (self.run_dir(run) / "failure.txt").is_file():
            texts.append((self.run_dir(run) / "failure.txt").read_text())
        return "\n".join(texts)

    def steps_done(self, run: str) -> int:
        path = self.run_dir(run) / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def wait_step(self, job: str, run: str, step: int) -> None:
        """Until a run has come to a step; if its job waits in the queue, it is hurried."""

        def there() -> bool:
            self.hurry_if_put_back(job)
            return self.steps_done(run) >= step

        wait_for(there, f"step {step} of {run}", lambda: self.explain(job, run))

    def wait_files(self, job: str, *paths: Path) -> None:
        """Until a job has made some files; if it waits in the queue, it is hurried."""

        def there() -> bool:
            self.hurry_if_put_back(job)
            return all(path.exists() for path in paths)

        wait_for(there, f"{paths}", lambda: self.explain(job))

    def wait_text(self, job: str, path: Path, text: str) -> None:
        """Until a log says something."""
        wait_for(
            lambda: path.is_file() and text in path.read_text(),
            f"'{text}' in {path.name}",
            lambda: self.explain(job),
        )

    def wait_requeued(self, job: str, run: str | None = None, times: int = 1) -> None:
        wait_for(
            lambda: int(self.cluster.field(job, "Restarts") or 0) >= times,
            f"restart {times} of job {job}",
            lambda: self.explain(job, run),
        )

    def send_back_early(self, parts: str, script: str) -> None:
        """Ask part 0 of an array to stop as soon as its program starts, and wait until it is back in
        the queue: programs load for seconds, so it has done nothing by then.
        """
        log = self.folder / f"logs/pargo-{script}-{parts}_0.out"
        self.wait_text(parts, log, f"] tools/{script}.py")
        self.cluster.command("scancel", "--batch", "--signal=USR1", f"{parts}_0")
        self.wait_requeued(f"{parts}_0")

    def wait_field(self, job: str, name: str, value: str) -> None:
        wait_for(
            lambda: self.cluster.field(job, name) == value,
            f"{name}={value} of {job}",
            lambda: self.explain(job),
            60,
        )

    def hurry(self, job: str) -> None:
        """Let a requeued job start now instead of after Slurm's two minutes."""
        time.sleep(
            2
        )  # a start in the same second as the end before it is refused: "Job credential revoked"
        self.cluster.command("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def hurry_if_put_back(self, job: str) -> None:
        if (
            self.cluster.field(job, "JobState") == "PENDING"
            and self.cluster.field(job, "Reason") == "BeginTime"
        ):
            self.hurry(job)

    def wait_end(
        self, job: str, run: str | None = None, seconds: float = WAIT_S, hurry: bool = True
    ) -> str:
        """State in which the job ended for good; every restart is hurried."""
        ended = (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "DEADLINE",
            "PREEMPTED",
        )

        def state() -> str:
            found = self.cluster.field(job, "JobState")
            if hurry:
                self.hurry_if_put_back(job)
            if found in ended:
                time.sleep(0.5)  # a job on its way back into the queue may look as if it had ended
            return found if found in ended and found == self.cluster.field(job, "JobState") else ""

        return str(
            wait_for(state, f"the end of job {job}", lambda: self.explain(job, run), seconds)
        )

    def came_to_its_end(self, job: str, run: str) -> None:
        assert self.wait_end(job, run, seconds=480) == "COMPLETED", self.explain(job, run)
        assert self.state(run)["state"] == "done"
        assert not (self.run_dir(run) / "STOP").exists()

    def ranks(self, run: str) -> list[int]:
        """Process ids of the ranks that train a run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_text()
                if f"\0-m\0pargo_ds.train\0{self.folder / f'{run}.yaml'}\0" in command:
                    found.append(int(folder.name))
        return sorted(found)

    def log(self, job: str) -> str:
        return "".join(path.read_text() for path in (self.folder / "logs").glob(f"*{job}*.out"))

    def state(self, run: str) -> dict:
        return json.loads((self.run_dir(run) / "state.json").read_text())

    def losses(self, run: str) -> list[float]:
        """Losses of a finished run, whose steps are checked to be all there, once and in order."""
        lines = metrics(self.run_dir(run))
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    def wandb_ids(self, run: str) -> set[str]:
        """The wandb run ids of all starts of a run."""
        return {
            path.name.rpartition("-")[2]
            for path in (self.run_dir(run) / "wandb").glob("*offline-run-*")
        }


@pytest.fixture(scope="session")
def cluster(request) -> Iterator[Cluster]:
    """Two idle nodes, partitions gpu and high, for the whole session."""

    def say(text: str) -> None:  # an installation must be seen, passed tests or not
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            print(f"\n{text}", flush=True)

    reason = why_not(say)
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(
            0o755
        )  # munged wants its socket to be reached, and pytest's own folders are closed
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def new_project(cluster, tmp_path_factory, tiny_run) -> Callable[[], Project]:
    return lambda: Project(tmp_path_factory.mktemp("project") / "pargo", cluster, tiny_run)


@pytest.fixture
def project(new_project) -> Project:
    """The folder from which the templates are submitted: every test has its own."""
    return new_project()


@pytest.fixture(scope="session")
def whole_project(new_project) -> Project:
    """A project whose run "whole" came to its end on two nodes without an interruption."""
    project = new_project()
    project.cluster.clear()
    job = project.submit("pretrain.sh", project.run_file("whole"))
    assert project.wait_end(job, "whole") == "COMPLETED", project.explain(job, "whole")
    assert project.state("whole")["state"] == "done"
    assert project.cluster.field(job, "Restarts") == "0"
    assert "2 x 1 ranks on node1 node2" in project.log(job)
    return project


@pytest.fixture(scope="session")
def whole(whole_project) -> list[float]:
    """Losses of an uninterrupted run on two nodes."""
    return whole_project.losses("whole")


@pytest.fixture(autouse=True)
def idle_nodes(request) -> None:
    """Every test begins with both nodes idle."""
    if "project" in request.fixturenames:
        request.getfixturevalue("cluster").clear()
