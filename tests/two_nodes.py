"""A real SLURM of two nodes on this machine, without systemd: Debian's packages, started and stopped by the test."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
PREFIX = "regrow-two-nodes-"
NODES = ("n0", "n1")
T = TypeVar("T")

# No cgroups and no accounting; requeued jobs are eligible after about cred_expire seconds instead of 120.
CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
InactiveLimit=0
MinJobAge=3600
JobRequeue=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None when one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons are started by root only"


class TwoNodes:
    """The running cluster. `environment`: for every command that is to speak to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        name = self.folder.name.removeprefix(PREFIX).lower().replace("_", "x")
        content = CONFIGURATION.format(name=f"r{name}", host=host, folder=self.folder, ports=_free_ports(3))
        (self.folder / "slurm.conf").write_text(content)
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "munge.seed"}
        self._start("munged", ["--foreground", *(f"--{name}={self.folder / file}" for name, file in files.items())])
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged's socket", log=self.log)
        self._start("slurmctld", ["-D"])
        for node in NODES:
            self.boot(node)
        wait_for(lambda: set(self.nodes().values()) == {"idle"}, "two idle nodes", log=self.log)

    def boot(self, node: str) -> None:
        """Start a node's daemon."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._start("slurmd", ["-D", "-N", node], node, SLURMD_NODENAME=node)  # as jobs have it: `crash` looks for it

    def crash(self, node: str) -> None:
        """The node loses its power: its daemon and everything that it runs is gone at once."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        while processes := [each for each in self.processes() if environment(each).get("SLURMD_NODENAME") == node]:
            for process in processes:
                _kill(process)

    def _start(self, program: str, arguments: Sequence[str], name: str | None = None, **variables: str) -> None:
        with open(self.folder / "log" / f"{name or program}.out", "ab") as output:
            self.daemons[name or program] = subprocess.Popen(
                [program, *arguments],
                env={**self.environment, **variables},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def stop(self) -> None:
        """End the daemons and everything that they have started; kill what does not end."""
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root")
        for name in ("n0", "n1", "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kill_all(self.folder)

    def processes(self) -> list[int]:
        """Every process of this cluster: its daemons, its jobs."""
        return _matching(self.folder)

    def run(self, *command: str) -> str:
        """A command of SLURM's, its output; AssertionError with what it said when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}\n{self.log()}"
        return done.stdout

    def nodes(self) -> dict[str, str]:
        """The state of each node, in lower case, without the marks such as * for one that does not answer."""
        with suppress(AssertionError, subprocess.SubprocessError):
            text = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=debug")
            return {line.split()[0]: re.sub(r"\W", "", line.split()[1]) for line in text.splitlines()}
        return {}

    def jobs(self) -> dict[str, dict[str, str]]:
        """Job id (or ARRAY_INDEX) -> what `scontrol show job` says of it, those that have ended included.

        Tasks of an array that still wait are one line of SLURM's, with ArrayTaskId=1,3-5%2 for instance.
        """
        found = {}
        for line in self.run("scontrol", "--oneliner", "show", "job").splitlines():
            fields = dict(re.findall(r"(\S+?)=(\S*)", line))
            if "JobId" in fields:
                array, indices = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
                names = [f"{array}_{index}" for index in _indices(indices)] if array and indices else [fields["JobId"]]
                found |= dict.fromkeys(names, fields)
        return found

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ... of a job or an array's task; "" for one that is not known."""
        return self.jobs().get(job, {}).get("JobState", "")

    def log(self) -> str:
        """The last lines that the daemons have said."""
        parts = []
        for path in sorted((self.folder / "log").glob("*.out")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-10:]]
        return "\n".join(parts)


def _indices(text: str) -> list[int]:
    """[1, 3, 4, 5] of "1,3-5%2"."""
    parts = [part.split("-") for part in text.split("%")[0].split(",")]
    return [index for part in parts for index in range(int(part[0]), int(part[-1]) + 1)]


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """A cluster for the length of the context; what a killed test run has left of others is removed first."""
    remove_abandoned()
    with ExitStack() as ending:
        # Not pytest's folders: munged wants every folder above its socket to be open to all, and paths are short.
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        folder.chmod(0o755)
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = ending.enter_context(open(folder / "lock", "w"))
        os.set_inheritable(lock.fileno(), False)
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = TwoNodes(folder)
        ending.callback(cluster.stop)
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[TwoNodes]:
    """A cluster for a module's tests; skips them where none can be started."""
    if reason := why_not():
        pytest.skip(reason)
    with two_nodes() as cluster:
        yield cluster


def wait_for(
    look: Callable[[], T], what: str, seconds: float = 60.0, log: Callable[[], object] = lambda: "", pause: float = 0.1
) -> T:
    """Look again and again until there is something true to see, and return that; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{log()}"
        time.sleep(pause)
    return seen


def remove_abandoned() -> None:
    """Kill and remove the clusters whose tests have died: nobody holds their locks any more."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        try:
            with open(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:  # another test run is just making it, or just removing it
            if time.time() - folder.stat().st_mtime < 60:
                continue
        kill_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def kill_all(folder: Path) -> None:
    """Kill every process that was started with this cluster's configuration."""
    for _ in range(50):
        if not (processes := _matching(folder)):
            return
        for process in processes:
            _kill(process)
        time.sleep(0.05)


def _matching(folder: Path) -> list[int]:
    """The living processes with this cluster's configuration in their environment; never this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            process = int(path.name)
            if process != os.getpid() and environment(process).get("SLURM_CONF") == str(folder / "slurm.conf"):
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(process)
    return found


def environment(process: int) -> dict[str, str]:
    """A process's environment variables when it began; {} of one that has gone."""
    with suppress(OSError):
        parts = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(part.split("=", 1) for part in parts if "=" in part)
    return {}


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _die_with_parent() -> None:
    """The kernel ends this daemon when the test run dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _path() -> str:
    """Daemons lie in sbin, which users have not in their PATH."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
