"""From the command line of launch/tpu_vm.py to the commands it runs; nothing here runs any.

A step is what runs at once, one command per slice. On a worker, ~/gpt3jax is the code and
~/gpt3jax-job is the job: `lock` (held while training or setup lives), `log`, `log.old`, `pid`
and `exit`, the exit code.
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
"""Exit code of setup where training runs."""
PYTHON = "3.12"
GCSFUSE_VERSION = "3.8.5"

SUMMARY = {
    "create": "ask for the TPU, and wait until it is there",
    "setup": "send the commit that is checked out, and install it; mount a bucket",
    "run": "start training on every host; it outlives the connection",
    "logs": "print the log of worker 0",
    "status": "say what the TPU and each worker do",
    "stop": "have training save and stop; `run` goes on from there",
    "up": "create, setup, run, logs; again after every preemption, until training is done",
    "delete": "delete the TPU; fine where there is none",
}
EXAMPLES = """
Settings go before the experiment; what follows the experiment goes to `gpt3jax train`.

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
    """What the user can mend before anything is tried."""


@dataclass(frozen=True)
class Settings:
    """What the command line says; each subcommand sets the fields that it takes."""

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
        """One TPU node per slice, named as gcloud names them."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{i}" for i in range(self.slices)]

    @property
    def bundle(self) -> Path:
        """Where the commit to send is kept."""
        return Path.home() / ".cache" / "gpt3jax" / f"{self.name}.bundle"

    def pause(self, failures: int) -> float:
        """Seconds before the next try: double each time, ten minutes at most by default."""
        return self.poll_seconds * min(2**failures, 40)


class Parser(argparse.ArgumentParser):
    """One that says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


def parser() -> Parser:
    """All flags; each subcommand has those that it needs."""
    made = Parser(
        prog="launch/tpu_vm.py", description="Train on Cloud TPU VMs.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    subparsers = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in SUMMARY.items():
        command = subparsers.add_parser(name, help=about, description=about, allow_abbrev=False)
        flag = command.add_argument
        flag("--name", required=True, help="of the queued resource and its nodes")
        flag("--zone", required=True)
        flag("--project", default="", help="gcloud's own if not given")
        flag("--slices", type=int, default=1, help="nodes of this type, trained as one (1)")
        flag("--poll-seconds", type=float, default=15.0, help="between two looks (15)")
        flag("--dry-run", action="store_true", help="print the commands, run none")
        if name in ("create", "up"):
            flag("--accelerator-type", required=True, help="such as v6e-16")
            flag("--runtime-version", required=True, help="such as v2-alpha-tpuv6e")
            flag("--spot", action="store_true", help="cheaper, and can be taken away")
        if name in ("setup", "up"):
            flag("--bucket", default="", help=f"to mount at {SHARED}; hierarchical namespace")
        if name == "logs":
            flag("--follow", action="store_true", help="until training ends")
        if name == "up":
            flag("--max-recreations", type=int, default=50, help="new starts at most (50)")
        if name in ("run", "up"):
            flag("experiment", help="a file of this repository, such as experiments/tiny.py")
            flag("overrides", nargs=argparse.REMAINDER, help="--run FOLDER and other overrides")
    return made


def parse(words: Sequence[str] | None) -> Settings:
    """The command line, checked.

    Raises:
      UserError: something in it cannot work.
    """
    s = Settings(**vars(parser().parse_args(words)))
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", s.name):
        raise UserError(f"--name {s.name}: not a resource name. Use a-z, 0-9 and -")
    if s.slices < 1 or s.max_recreations < 0 or s.poll_seconds <= 0:
        raise UserError("--slices, --max-recreations or --poll-seconds: too small. Raise it")
    if not s.experiment:
        return s
    ours = {"--" + field.name.replace("_", "-") for field in fields(Settings)} - {"--name"}
    if late := ours.intersection(word.split("=")[0] for word in s.overrides):
        raise UserError(f"{min(late)}: comes after the experiment. Put it before {s.experiment}")
    file = Path(s.experiment).resolve()
    if not (file.is_file() and file.is_relative_to(ROOT)):
        raise UserError(f"{s.experiment}: no file of {ROOT}. Name one, such as experiments/tiny.py")
    if not re.search(r"(^|\0)--run[=\0]/", "\0".join(s.overrides)):
        raise UserError(f"--run: not a folder that all hosts share. Use --run {SHARED}/runs/NAME")
    return replace(s, experiment=str(file.relative_to(ROOT)))


def steps(s: Settings) -> list[Step]:
    """What a subcommand runs when nothing goes wrong and nothing has to be waited for."""
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
    """A gcloud command on TPUs that asks nothing."""
    project = [f"--project={s.project}"] if s.project else []
    return ["gcloud", "compute", "tpus", *words, f"--zone={s.zone}", *project, "--quiet"]


def create_command(s: Settings) -> Command:
    """Ask for all slices in one request: they come together or not at all."""
    several = [f"--node-count={s.slices}", f"--node-prefix={s.name}"]
    return gcloud(
        s, "queued-resources", "create", s.name,
        *([f"--node-id={s.name}"] if s.slices == 1 else several),
        f"--accelerator-type={s.accelerator_type}", f"--runtime-version={s.runtime_version}",
        *(["--spot"] if s.spot else []),
    )  # fmt: skip


def describe_command(s: Settings, node: str = "") -> Command:
    """Ask about the queued resource, or about one of its nodes."""
    kind = ("tpu-vm", "describe", node) if node else ("queued-resources", "describe", s.name)
    return gcloud(s, *kind, "--format=json")


def delete_command(s: Settings) -> Command:
    """Delete the queued resource with its nodes."""
    return gcloud(s, "queued-resources", "delete", s.name, "--force")


def ssh_step(s: Settings, script: str, nodes: Sequence[str] = (), worker: str = "all") -> Step:
    """Run one line of shell on workers; a dead connection is noticed within a minute."""
    alive = ["--ssh-flag=-oServerAliveInterval=15", "--ssh-flag=-oConnectTimeout=30"]
    words = (f"--worker={worker}", *alive, f"--command={script}")
    return [gcloud(s, "tpu-vm", "ssh", node, *words) for node in nodes or s.nodes]


def pack_steps(s: Settings) -> list[Step]:
    """Make HEAD a git bundle, which leaves the commit its name for the ledger of the run."""
    git = ["git", "-C", str(ROOT)]
    return [
        [[*git, "diff", "--quiet", "HEAD"]],
        [[*git, "bundle", "create", "--quiet", str(s.bundle), "HEAD"]],
    ]


def install_steps(s: Settings) -> list[Step]:
    """Send the bundle to every worker, and install it there."""
    copies = [("tpu-vm", "scp", str(s.bundle), f"{node}:gpt3jax.bundle") for node in s.nodes]
    send = [gcloud(s, *words, "--worker=all") for words in copies]
    return [send, ssh_step(s, install_script(s))]


def install_script(s: Settings) -> str:
    """Make ~/gpt3jax and its .venv what the bundle says; refused while training runs there.

    uv brings a Python: the images of TPU VMs have 3.10, and jax needs 3.11.
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
    """Mount the bucket for this user unless it is; install gcsfuse where it is not there."""
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
    """Start training in a session of its own that holds the lock as long as it lives.

    Harmless where it runs already: gcloud itself repeats a command whose connection it lost.
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
"""Says in one line what a worker does: idle until training was started there, vanished when it
ended without an exit code (its host restarted, or its shell was killed)."""


def states_step(s: Settings) -> Step:
    """Ask every worker what it does."""
    return ssh_step(s, STATE_SCRIPT)


def poll_command(s: Settings, seen: int) -> Command:
    """Ask worker 0 of the first slice what it does, and for its log after the bytes seen."""
    script = f"{STATE_SCRIPT}; tail -c +{seen + 1} log 2>/dev/null; true"
    return ssh_step(s, script, s.nodes[:1], worker="0")[0]


def stop_step(s: Settings) -> Step:
    """Have training save and stop; after three minutes, end it."""
    script = (
        f"cd {JOB} 2>/dev/null && ! flock -s -n lock true || exit 0; pkill -TERM -P $(cat pid); "
        "flock -s -w 180 lock true || { pkill -KILL -s $(cat pid); flock -s -w 10 lock true; }"
    )
    return ssh_step(s, script)
