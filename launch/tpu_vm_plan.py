"""Parses the command line of launch/tpu_vm.py and builds its commands, without running them.

A step is a list of commands that run concurrently, one per slice. On a worker, ~/gpt3jax contains
the code and ~/gpt3jax-job the job: `lock` (locked while training or setup runs), `log`, `log.old`,
`pid`, and `exit` with the exit code.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
CODE, JOB, SHARED = "~/gpt3jax", "~/gpt3jax-job", "/mnt/shared"
BUSY = 75
"""Exit code of setup if training is running."""
PYTHON = "3.12"
GCSFUSE_VERSION = "3.8.5"

SUMMARY = {
    "create": "request the TPU and wait until it is active",
    "setup": "send and install the current commit; mount the bucket",
    "run": "start training on every host; it survives a lost connection",
    "logs": "print the log of worker 0",
    "status": "print the state of the TPU and of each worker",
    "stop": "make training save and stop; `run` resumes it",
    "up": "create, setup, run, logs; repeated after every preemption until training is complete",
    "delete": "delete the TPU; succeeds if there is none",
}
EXAMPLES = """
Settings go before the experiment. All arguments after it are passed to `gpt3jax train`.

  TPU="--name gpt --zone us-east5-b --accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e"
  python launch/tpu_vm.py up $TPU --spot --bucket my-bucket \\
      experiments/gpt3_1b3.py --run /mnt/shared/runs/1b3
  python launch/tpu_vm.py up $TPU --dry-run experiments/tiny.py --run /mnt/shared/runs/tiny
  python launch/tpu_vm.py logs --name gpt --zone us-east5-b --follow
  python launch/tpu_vm.py delete --name gpt --zone us-east5-b
"""

Command = list[str]
Step = list[Command]


class UserError(Exception):
    """A mistake of the user, detected before anything is run."""


@dataclass(frozen=True)
class Settings:
    """The parsed command line; each subcommand sets the fields that it uses."""

    command: str
    name: str
    zone: str
    project: str = ""
    slices: int = 1
    accelerator_type: str = ""
    runtime_version: str = ""
    spot: bool = False
    bucket: str = ""
    experiment: str = ""
    overrides: Sequence[str] = ()
    follow: bool = False
    max_recreations: int = 50
    poll_seconds: float = 15.0
    dry_run: bool = False

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU nodes, one per slice, as gcloud assigns them."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{i}" for i in range(self.slices)]

    @property
    def bundle(self) -> Path:
        """Path of the git bundle with the commit to send."""
        return Path.home() / ".cache" / "gpt3jax" / f"{self.name}.bundle"

    def pause(self, failures: int) -> float:
        """Seconds before the next attempt: exponential backoff, by default up to ten minutes."""
        return self.poll_seconds * min(2**failures, 40)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


def parser() -> Parser:
    """Builds the argument parser with one subparser per subcommand."""
    result = Parser(
        prog="launch/tpu_vm.py",
        description="Train on Cloud TPU VMs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in SUMMARY.items():
        command = subparsers.add_parser(name, help=about, description=about, allow_abbrev=False)
        flag = command.add_argument
        flag("--name", required=True, help="name of the queued resource and its nodes")
        flag("--zone", required=True)
        flag("--project", default="", help="default: gcloud's project")
        flag("--slices", type=int, default=1, help="slices in one training run (1)")
        flag("--poll-seconds", type=float, default=15.0, help="polling interval (15)")
        flag("--dry-run", action="store_true", help="print the commands without running them")
        if name in ("create", "up"):
            flag("--accelerator-type", required=True, help="such as v6e-16")
            flag("--runtime-version", required=True, help="such as v2-alpha-tpuv6e")
            flag("--spot", action="store_true", help="cheaper, but can be preempted")
        if name in ("setup", "up"):
            flag(
                "--bucket",
                default="",
                help=f"bucket with hierarchical namespace, mounted at {SHARED}",
            )
        if name == "logs":
            flag("--follow", action="store_true", help="until training exits")
        if name == "up":
            flag("--max-recreations", type=int, default=50, help="maximum restarts (50)")
        if name in ("run", "up"):
            flag("experiment", help="a file of this repository, such as experiments/tiny.py")
            flag("overrides", nargs=argparse.REMAINDER, help="--run FOLDER and other overrides")
    return result


def parse(words: Sequence[str] | None) -> Settings:
    """Parses and validates the command line.

    Raises:
      UserError: the command line is invalid.
    """
    s = Settings(**vars(parser().parse_args(words)))
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", s.name):
        raise UserError(f"--name {s.name}: not a resource name. Use a-z, 0-9 and -")
    if s.slices < 1 or s.max_recreations < 0 or s.poll_seconds <= 0:
        raise UserError("--slices, --max-recreations or --poll-seconds: too small. Raise it")
    if not s.experiment:
        return s
    flags = {"--" + field.name.replace("_", "-") for field in fields(Settings)} - {"--name"}
    if late := flags.intersection(word.split("=")[0] for word in s.overrides):
        raise UserError(f"{min(late)}: comes after the experiment. Put it before {s.experiment}")
    file = Path(s.experiment).resolve()
    if not (file.is_file() and file.is_relative_to(ROOT)):
        raise UserError(f"{s.experiment}: no file of {ROOT}. Name one, such as experiments/tiny.py")
    if not re.search(r"(^|\0)--run[=\0]/", "\0".join(s.overrides)):
        raise UserError(f"--run: not a folder that all hosts share. Use --run {SHARED}/runs/NAME")
    return replace(s, experiment=str(file.relative_to(ROOT)))


def steps(s: Settings) -> list[Step]:
    """The steps of a subcommand if nothing fails and no state has to be awaited."""
    create = [[create_command(s)], [describe_command(s)]]
    pack, install = pack_steps(s), install_steps(s)
    run, logs = run_step(s), [poll_command(s, 0)]
    return {
        "create": create,
        "setup": [*pack, *install],
        "run": [run],
        "logs": [logs],
        "status": [[describe_command(s)], states_step(s)],
        "stop": [stop_step(s)],
        "up": [*pack, *create, *install, run, logs, states_step(s)],
        "delete": [[delete_command(s)]],
    }[s.command]


def gcloud(s: Settings, *words: str) -> Command:
    """A non-interactive gcloud command for TPUs."""
    project = [f"--project={s.project}"] if s.project else []
    return ["gcloud", "compute", "tpus", *words, f"--zone={s.zone}", *project, "--quiet"]


def create_command(s: Settings) -> Command:
    """Requests all slices in one queued resource, so that they are provisioned together."""
    several = [f"--node-count={s.slices}", f"--node-prefix={s.name}"]
    return gcloud(
        s, "queued-resources", "create", s.name,
        *([f"--node-id={s.name}"] if s.slices == 1 else several),
        f"--accelerator-type={s.accelerator_type}", f"--runtime-version={s.runtime_version}",
        *(["--spot"] if s.spot else []),
    )  # fmt: skip


def describe_command(s: Settings, node: str = "") -> Command:
    """Describes the queued resource, or one of its nodes."""
    kind = ("tpu-vm", "describe", node) if node else ("queued-resources", "describe", s.name)
    return gcloud(s, *kind, "--format=json")


def delete_command(s: Settings) -> Command:
    """Deletes the queued resource with its nodes."""
    return gcloud(s, "queued-resources", "delete", s.name, "--force")


def ssh_step(s: Settings, script: str, nodes: Sequence[str] = (), worker: str = "all") -> Step:
    """Runs a line of shell on workers; a dead connection is detected within a minute."""
    keep_alive = ["--ssh-flag=-oServerAliveInterval=15", "--ssh-flag=-oConnectTimeout=30"]
    flags = (f"--worker={worker}", *keep_alive, f"--command={script}")
    return [gcloud(s, "tpu-vm", "ssh", node, *flags) for node in nodes or s.nodes]


def pack_steps(s: Settings) -> list[Step]:
    """Packs HEAD in a git bundle, which preserves the commit hash for the event log of the run."""
    git = ["git", "-C", str(ROOT)]
    return [
        [[*git, "diff", "--quiet", "HEAD"]],
        [[*git, "bundle", "create", "--quiet", str(s.bundle), "HEAD"]],
    ]


def install_steps(s: Settings) -> list[Step]:
    """Copies the bundle to every worker and installs it."""
    copies = [("tpu-vm", "scp", str(s.bundle), f"{node}:gpt3jax.bundle") for node in s.nodes]
    send = [gcloud(s, *words, "--worker=all") for words in copies]
    return [send, ssh_step(s, install_script(s))]


def install_script(s: Settings) -> str:
    """Updates ~/gpt3jax and its .venv to the bundle; exits with BUSY while training runs.

    uv installs Python, as TPU VM images have 3.10 and jax needs 3.11.
    """
    uv = "python3 -m uv"
    parts = [
        f"mkdir -p {CODE}", f"cd {CODE}", "git init -q", "git fetch -q ~/gpt3jax.bundle HEAD",
        "git checkout -qf --detach FETCH_HEAD", "git clean -fdq",
        "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv",
        f"{uv} venv -q --allow-existing --python {PYTHON} .venv",
        f"{uv} pip install -q --python .venv -r requirements/tpu.txt",
        f"{uv} pip install -q --python .venv --no-deps -e .",
        *([mount_script(s.bucket)] if s.bucket else []),
    ]  # fmt: skip
    script = shlex.quote("; ".join(parts))
    return f"mkdir -p {JOB} && flock -w 1 -E {BUSY} -o {JOB}/lock bash -ec {script}"


def mount_script(bucket: str) -> str:
    """Mounts the bucket for this user unless it is mounted, and installs gcsfuse if needed."""
    file = f"gcsfuse_{GCSFUSE_VERSION}_amd64.deb"
    releases = "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download"
    return (
        f"mountpoint -q {SHARED} || {{ command -v gcsfuse >/dev/null || "
        f"{{ curl -fsSLo /tmp/{file} {releases}/v{GCSFUSE_VERSION}/{file}; "
        f"sudo apt-get -o DPkg::Lock::Timeout=300 install -qqy /tmp/{file}; }}; "
        f"sudo mkdir -p {SHARED}; sudo chown $(id -u) {SHARED}; "
        f"gcsfuse --implicit-dirs {shlex.quote(bucket)} {SHARED}; }}"
    )


def run_step(s: Settings) -> Step:
    """Starts training in a new session, which locks `lock` until it exits.

    It does nothing if training is already running, because gcloud repeats a command whose
    connection was lost.
    """
    train = shlex.join([".venv/bin/gpt3jax", "train", s.experiment, *s.overrides])
    session = shlex.quote(f"trap : TERM; cd {CODE}; {train} 9>&-; echo $? >{JOB}/exit")
    script = (
        f"mkdir -p {JOB} && cd {JOB} && exec 9>lock; if flock -w 1 9; then "
        f"rm -f exit; mv -f log log.old 2>/dev/null; "
        f"setsid nohup bash -c {session} >log 2>&1 </dev/null & echo $! >pid; "
        f"echo $(hostname): training started; else echo $(hostname): training runs already; fi"
    )
    return ssh_step(s, script)


STATE_SCRIPT = (
    f"mkdir -p {JOB}; cd {JOB}; if ! flock -s -n lock true; then s=running; "
    'elif [ -s exit ]; then s="exit $(cat exit)"; elif [ -e log ]; then s=vanished; '
    'else s=idle; fi; echo "@state $(hostname) $s"'
)
"""Prints the state of a worker in one line: `idle` if training was never started, `vanished` if it
ended without an exit code (the host restarted, or the shell was killed)."""


def states_step(s: Settings) -> Step:
    """Queries the state of every worker."""
    return ssh_step(s, STATE_SCRIPT)


def poll_command(s: Settings, seen: int) -> Command:
    """Queries the state of worker 0 of the first slice, and its log from byte `seen` on."""
    script = f"{STATE_SCRIPT}; tail -c +{seen + 1} log 2>/dev/null; true"
    return ssh_step(s, script, s.nodes[:1], worker="0")[0]


def stop_step(s: Settings) -> Step:
    """Makes training save and stop; kills it after three minutes."""
    script = (
        f"cd {JOB} 2>/dev/null && ! flock -s -n lock true || exit 0; pkill -TERM -P $(cat pid); "
        "flock -s -w 180 lock true || { pkill -KILL -s $(cat pid); flock -s -w 10 lock true; }"
    )
    return ssh_step(s, script)
