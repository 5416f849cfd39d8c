"""A Slurm cluster of two nodes on this machine, with its own key, ports and folder.

The nodes are called 127.0.0.1 and 127.0.0.2, since JAX takes the name of the first for the host of
its coordinator: these names need no entry in /etc/hosts. Nobody need be root.

As a program, this is the keeper of a cluster: the parent of all its processes, see `keep`.
"""

import ctypes
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("127.0.0.1", "127.0.0.2")
GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""Stand for GPUs, of which Slurm wants to see devices."""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
MailProg=/bin/true
# JAX takes its port from the number of the job: not that of another cluster on this machine.
FirstJobId={port}
# The opposite of what the job needs, so that it has to ask.
KillOnBadExit=1
JobRequeue=0
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs=2 Gres=gpu:4\n"


def missing():
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


class Cluster:
    """What a user of the cluster types."""

    def __init__(self, folder):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env = {**inherited, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words, **env):
        """What a command of Slurm prints; what it complains of is raised."""
        done = subprocess.run(
            words, env={**self.env, **env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *words, **env):
        """The number of a new job on both nodes."""
        return self.run("sbatch", "--parsable", "--nodes=2", *map(str, words), **env)

    def job(self, number):
        """What Slurm knows of a job: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number, seconds=300):
        """Wait until a job has ended for good; what Slurm knows of it."""
        unfinished = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        until(lambda: self.job(number)["JobState"] not in unfinished, seconds, f"job {number}")
        return self.job(number)


def until(is_so, seconds, what):
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.2)


@contextmanager
def running_cluster():
    """Start a cluster; at the end nothing of it is left, even if we are killed."""
    # Not in pytest's own folders: paths of sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    _configure(folder)
    cluster = Cluster(folder)
    # Its own session: Ctrl-C is for us. Leaving the block closes stdin, then waits.
    with subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env=cluster.env, stdin=subprocess.PIPE, text=True, start_new_session=True,
    ) as keeper:  # fmt: skip

        def start(name, *words):
            print(json.dumps([name, *words]), file=keeper.stdin, flush=True)

        try:
            at = folder / "munge"
            start(
                "munged", "munged", "--foreground", "--force", f"--key-file={at}.key",
                f"--socket={at}.socket", f"--pid-file={at}.pid", f"--log-file={at}.log",
                f"--seed-file={at}.seed",
            )  # fmt: skip
            until((folder / "munge.socket").exists, 10, "munged")
            start("slurmctld", "slurmctld", "-D")
            for name in NODES:
                start(name, "slurmd", "-D", "-N", name)
            until(lambda: _idle(cluster) == len(NODES), 30, "idle nodes")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{_logs(folder)}") from None
        yield cluster


def _configure(folder):
    """Write the configuration, with ports that are free."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.getuid()).pw_name
    config = CONFIG.format(folder=folder, host=host, port=ports[0], user=user)
    nodes = zip(NODES, ports[1:], strict=True)
    config += "".join(NODE.format(name=name, host=host, port=port) for name, port in nodes)
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text(f"Name=gpu File={','.join(GPUS)}\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()


def _idle(cluster):
    """How many nodes are ready."""
    command = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
    done = subprocess.run(
        command, env=cluster.env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.split().count("idle")


def _logs(folder):
    """The ends of what the daemons wrote."""
    return "\n".join(f"--- {out}\n{out.read_text()[-1500:]}" for out in folder.glob("*.out"))


def keep(folder):
    """Start the daemons that stdin names, and when it closes, kill all that has come of them.

    Slurm's processes leave their parents. Here the kernel hands them to us (a subreaper), one
    generation after the other.
    """
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)
    signal.signal(signal.SIGCHLD, _reap)
    daemons = []
    for line in sys.stdin:
        name, *words = json.loads(line)
        with (folder / f"{name}.out").open("w") as out:
            daemons.append(
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(ChildProcessError):
        while True:
            for child in _children():
                os.kill(child, signal.SIGKILL)
            os.wait()
    shutil.rmtree(folder)


def _reap(*_):
    """Let the dead go: to Slurm, a job whose zombies remain has not ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _children():
    """The processes of which this one is the parent."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            _, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                yield int(process.name)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
