"""A SLURM cluster of this machine alone: one node with four fake GPUs, two partitions, loopback addresses only.

The configuration stands where SLURM looks by default, because the `srun` inside a job knows no other place. It is
removed with the daemons, and a configuration that somebody else wrote is never touched.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ETC = Path("/etc/slurm")
MARK = "# Written by tests/slurm of u2pl; removed when its daemons end.\n"
PACKAGES = ["slurm-wlm", "munge"]
PORT = 16817  # of slurmctld
NODE_TIMEOUT = 10  # seconds without an answer until a node counts as failed

# low is preempted by high, and its jobs go back into the queue. Times are short, so that tests need not wait for them.
CONFIGURATION = """\
ClusterName=u2pl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort=16818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=defer,batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=900
SlurmdTimeout={timeout}
KillWait=10
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=256000 Gres=gpu:4 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=0
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def obstacle() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons and /etc/slurm need root"
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        return "no SLURM, and no apt-get to install it with"
    return None


def install() -> None:
    """Debian's packages, if a daemon is missing."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "squeue")):
        return
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES], check=True, env=quiet)


class Cluster:
    """The daemons, and what a test does to them. `folder` keeps their state and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.files = [ETC / name for name in ("slurm.conf", "gres.conf", "cgroup.conf")]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def slurm(self, *command: str) -> str:
        """What a SLURM command prints."""
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def jobs(self, comment: str = "") -> list[dict[str, str]]:
        """What SLURM knows of the jobs, in the order of submission, whose comment (the rule) starts so."""
        lines = self.slurm("scontrol", "show", "job", "-o").splitlines()
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return [job for job in jobs if job.get("Comment", "").startswith(comment)]

    def wait_for(
        self, condition: Callable[[], object], what: str, evidence: Callable[[], str] = str, seconds: float = 400
    ) -> None:
        """Ask every half second until `condition` holds.

        After `seconds`, which are no measure, the test fails with the jobs that SLURM knows and with `evidence()`.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                every = ["squeue", "--states=all", "-o", "%i %P %T %r %k"]
                jobs = subprocess.run(every, capture_output=True, text=True).stdout
                pytest.fail(f"still waiting for {what}\n{jobs}\n{evidence()}")
            time.sleep(0.5)

    def start(self) -> None:
        """Write the configuration and start the daemons. Raises RuntimeError beside another cluster."""
        for path in self.files:
            if path.exists() and not path.read_text().startswith(MARK):
                raise RuntimeError(f"{path} is not ours: there is a cluster here already")
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", PORT)):
            raise RuntimeError(f"port {PORT} answers: another run of these tests has its cluster here")
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):  # a GPU must be a character device; these are /dev/null by another name
            os.mknod(self.folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        text = CONFIGURATION.format(host=self.host, port=PORT, folder=self.folder, timeout=NODE_TIMEOUT)
        gpus = f"NodeName={self.host} Name=gpu File={self.folder}/gpu[0-3]\n"
        ETC.mkdir(exist_ok=True)
        contents = (text, gpus, "ConstrainCores=no\nConstrainRAMSpace=no\n")
        for path, content in zip(self.files, contents, strict=True):
            path.write_text(MARK + content)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
        self._run("munged", "--foreground", "--force", *(f"--{k}={self.folder}/munge.{v}" for k, v in names.items()))
        self.wait_for((self.folder / "munge.socket").exists, "munged", seconds=30)
        self._run("slurmctld", "-D")
        self.start_node()

    def _run(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, which stop the daemons in their order.
            self.daemons[command[0]] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def start_node(self) -> None:
        """Start slurmd, and wait until the node takes jobs."""
        self._run("slurmd", "-D")
        state = ["sinfo", "-h", "-p", "low", "-o", "%T"]
        self.wait_for(
            lambda: subprocess.run(state, capture_output=True).stdout.strip() == b"idle", "the node", seconds=60
        )

    def fail_node(self) -> None:
        """The node dies: slurmd and all that it started, at once."""
        daemon = self.daemons.pop("slurmd")
        jobs = self._processes()
        daemon.kill()
        daemon.wait()
        for pid in jobs:
            _kill(pid)

    def _processes(self) -> list[int]:
        """The processes of the node's jobs, those that watch them included."""
        parents: dict[int, int] = {}
        steps = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"slurmstepd: ["):
                    steps.append(int(entry.name))
            except (OSError, ValueError):  # ended meanwhile
                continue
        found = list(steps)
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def stop(self) -> None:
        """Cancel every job, end the daemons, and remove the configuration."""
        if "slurmctld" in self.daemons:
            subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=60)
        jobs = self._processes()
        for name in ("slurmd", "slurmctld", "munged"):
            if daemon := self.daemons.pop(name, None):
                daemon.terminate()
                try:
                    daemon.wait(30)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        for pid in jobs:
            _kill(pid)
        for path in self.files:
            if path.exists() and path.read_text().startswith(MARK):
                path.unlink()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := obstacle():
        pytest.skip(reason)
    install()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is told to stop has daemons to stop
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def an_empty_queue(cluster):
    """A test begins with an idle cluster, and what a failed one left behind is cancelled."""
    yield
    subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=60)
    cluster.wait_for(lambda: not cluster.slurm("squeue", "-h"), "an empty queue", seconds=60)
