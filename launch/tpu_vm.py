"""Train on Cloud TPU VMs: one queued resource, the same command on every host of every slice.

launch/tpu_vm_plan.py says which commands; here they are run, waited for and tried again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tpu_vm_plan as plan
from tpu_vm_plan import Command, Settings, Step, UserError

Done = subprocess.CompletedProcess[bytes]

FINAL = (0, 1, 2)
"""Exit codes of training that starting it again would not change."""
VANISHED = -1  # Stands for the exit code where there is none.
PATIENCE = 20
"""Failures in a row before what should work counts as broken."""
STEADY_SECONDS = 900
"""An attempt that lasted so long starts the pauses between attempts over."""
WAITING = {"CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES", "STATE_UNSPECIFIED"}
DEAD_NODE = {"PREEMPTED", "TERMINATED", "STOPPING", "STOPPED", "DELETING"}
HOPELESS = re.compile(
    "(?i)permission_denied|unauthenticated|not_found|account selected|argument|parsing"
    "|quota(?!.*per minute)"
)
"""Of gcloud's errors, those that do not pass by themselves."""
STATE = re.compile(r"^@state (\S+) (running|vanished|idle|exit \d+)$", re.MULTILINE)


class LaunchError(Exception):
    """What was tried and failed."""


class PassingError(LaunchError):
    """What may work when it is tried again."""


class TpuLostError(PassingError):
    """The TPU is gone: a new one may do."""


def say(text: str) -> None:
    """A line about progress, which leaves standard output to the log of training."""
    print(f"{time.strftime('%F %T')} {text}", file=sys.stderr, flush=True)


def call(command: Command) -> Done:
    """Run a command to its end, whatever that is."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found on PATH. Install it, then try again") from None


def reason(done: Done) -> str:
    """The line of a command's output that says why it failed."""
    output = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(\w*error|fatal|e):", line)]
    last = (errors or lines or [f"exit code {done.returncode}"])[-1]
    frame = r"^ERROR: (\(gcloud[^)]*\) )?| This command is authenticated .*"
    return re.sub(frame, "", last)[:300].rstrip(".")


def failed(what: str, why: str, kind: type[LaunchError] = LaunchError) -> LaunchError:
    """An error with its fix."""
    fix = "Mend that, then try again"
    if "quota" in why.lower():
        fix = "Delete queued resources that are SUSPENDED or FAILED (they hold quota), or raise it"
    return kind(f"{what}: {why}. {fix}")


def perform(s: Settings, *steps: Step) -> str:
    """Run steps in turn, each on all slices at once; returns what they printed."""
    printed = []
    for step in steps:
        with ThreadPoolExecutor(len(step)) as pool:
            for done in pool.map(call, step):
                if done.returncode:
                    raise trouble(s, done)
                printed.append(done.stdout.decode(errors="replace"))
    return "".join(printed)


def trouble(s: Settings, done: Done) -> Exception:
    """The error for a step that failed: did the user, the command, the network or the TPU?"""
    if "diff" in done.args and done.returncode == 1:
        return UserError("uncommitted changes: what trains must be a commit. Commit or stash them")
    if "tpu-vm" not in done.args:
        return failed(shlex.join(done.args), reason(done))
    if done.returncode == plan.BUSY:
        return LaunchError(f"{s.name}: training runs there. `logs` follows it, `stop` ends it")
    if gone := lost(s):
        return TpuLostError(f"{gone}. `up` makes a new one and resumes")
    return failed(s.name, reason(done), PassingError if done.returncode == 255 else LaunchError)


def insist(s: Settings, command: Command) -> Done | None:
    """Run a gcloud command until it works; None where there is nothing of that name."""
    for failures in range(PATIENCE):
        done = call(command)
        if done.returncode == 0:
            return done
        if "NOT_FOUND" in reason(done):
            return None
        if HOPELESS.search(reason(done)):
            break
        time.sleep(s.pause(failures))
    raise failed(" ".join(command[3:6]), reason(done))


def describe(s: Settings, node: str = "") -> dict:
    """What gcloud knows of the queued resource or a node; empty where there is none."""
    done = insist(s, plan.describe_command(s, node))
    return json.loads(done.stdout) if done else {}


def queued_state(s: Settings) -> tuple[str, str]:
    """State of the queued resource, and what the service says about a failure."""
    state = describe(s).get("state", {"state": "ABSENT"})
    return state.get("state", "?"), state.get("failedData", {}).get("error", {}).get("message", "")


def lost(s: Settings) -> str:
    """Why the TPU is no longer there; empty while it is."""
    state, _ = queued_state(s)
    if state != "ACTIVE":
        return f"{s.name} is {state}"
    for node in s.nodes:
        state = describe(s, node).get("state")
        if state is None:
            raise LaunchError(f"{node}: {s.name} has no such node. Check --slices")
        if state in DEAD_NODE:
            return f"{node} is {state}"
    return ""


def create(s: Settings) -> bool:
    """Ask for the TPU unless it was asked for before, and wait for it; whether it is new.

    Raises:
      TpuLostError: it was taken back before it was there.
      LaunchError: it cannot be had.
    """
    done = call(plan.create_command(s))
    new = done.returncode == 0
    if not new and "ALREADY_EXISTS" not in reason(done):
        kind = LaunchError if HOPELESS.search(reason(done)) else PassingError
        raise failed(f"{s.name} was not created", reason(done), kind)
    say(f"{s.name}: {'asked for' if new else 'exists already, and stays as it is'}")
    last = ""
    while True:
        state, why = queued_state(s)
        if state != last:
            say(f"{s.name}: {state}")
        if state == "ACTIVE":
            return new
        if state not in WAITING:
            kind = LaunchError if HOPELESS.search(why) else TpuLostError
            raise failed(f"{s.name} is {state}", why or "taken back or deleted", kind)
        last = state
        time.sleep(s.poll_seconds)


def pack(s: Settings) -> None:
    """Put the commit to train with in a file."""
    s.bundle.parent.mkdir(parents=True, exist_ok=True)
    perform(s, *plan.pack_steps(s))


def install(s: Settings) -> None:
    """Send what was packed to all workers, and install it there."""
    say(f"{s.name}: installing on all workers, which takes minutes")
    perform(s, *plan.install_steps(s))


def setup(s: Settings) -> None:
    """Put the commit that is checked out on all workers."""
    pack(s)
    install(s)


def run(s: Settings) -> None:
    """Start training on all workers."""
    for line in sorted(perform(s, plan.run_step(s)).splitlines()):
        say(line)


def stop(s: Settings) -> None:
    """Have training save and stop on all workers; `run` goes on from there."""
    perform(s, plan.stop_step(s))


def states(s: Settings) -> dict[str, str]:
    """What each worker does, by host."""
    return dict(STATE.findall(perform(s, plan.states_step(s))))


def looks(s: Settings) -> Iterator[str]:
    """Print worker 0's log as it grows; yields its state after each look.

    A lost connection costs nothing: each look names the bytes already seen.

    Raises:
      TpuLostError: the TPU is gone.
      PassingError: it is out of reach for long.
    """
    seen = failures = 0
    while True:
        done = call(plan.poll_command(s, seen))
        # gcloud repeats a broken command by itself: what counts follows the last state line.
        state = list(STATE.finditer(done.stdout.decode("latin-1")))[-1:]
        if done.returncode == 0 and state:
            failures = 0
            fresh = done.stdout[state[0].end() + 1 :]
            sys.stdout.buffer.write(fresh)
            sys.stdout.flush()
            seen += len(fresh)
            yield state[0][2]
        else:
            failures += 1
            if gone := lost(s):
                raise TpuLostError(f"{gone}. `up` makes a new one and resumes")
            if failures == PATIENCE:
                raise failed(f"{s.nodes[0]}: no connection", reason(done), PassingError)
            say(f"{s.nodes[0]}: no connection, trying again")
        time.sleep(s.poll_seconds)


def exit_code(state: str) -> int:
    """The exit code in a worker's state."""
    if state == "idle":
        raise LaunchError("training was not started on a worker: it has no log. Use `run`")
    return int(state.split()[1]) if state.startswith("exit") else VANISHED


def follow(s: Settings) -> int:
    """Print worker 0's log until training ends there; its exit code."""
    return next(exit_code(state) for state in looks(s) if state != "running")


def verdict(s: Settings, code: int) -> int:
    """How training ended on all workers: the one that failed knows why, its peers do not."""
    found = ["running"]
    for _ in range(PATIENCE):
        try:
            found = list(states(s).values())
        except PassingError:
            if code in FINAL:
                return code
            raise
        if "running" not in found:
            break
        time.sleep(s.poll_seconds)
    bad = [exit_code(state) for state in found if state not in ("running", "exit 0")]
    return next((one for one in bad if one in FINAL), code or (bad or [0])[0])


def attempt(s: Settings) -> int:
    """Have training run on the TPU, whether or not either is there already; its exit code."""
    new = create(s)
    if new or set(states(s).values()) != {"running"}:
        if not new:
            stop(s)
        install(s)
        run(s)
    return verdict(s, follow(s))


def up(s: Settings) -> int:
    """Train one commit until it is done or cannot be, on one TPU after another."""
    pack(s)
    quick = 0
    for left in reversed(range(s.max_recreations + 1)):
        began = time.monotonic()
        try:
            code = attempt(s)
            if code in FINAL:
                say(f"training exited with {code}; {s.name} still costs: `delete` ends that")
                return code
            why, gone = f"training ended with {'no exit code' if code == VANISHED else code}", False
        except PassingError as error:
            why, gone = str(error).split(". ")[0], isinstance(error, TpuLostError)
        if left:
            say(f"{why}: starting again, {left} more times at most")
            if gone:
                delete(s)
            quick = 0 if time.monotonic() - began > STEADY_SECONDS else quick + 1
            time.sleep(s.pause(quick))
    raise LaunchError(f"gave up after {s.max_recreations} new starts: {why}. See `status`, `logs`")


def delete(s: Settings) -> None:
    """Delete the queued resource and its nodes; fine where there is none."""
    say(f"{s.name}: {'deleted' if insist(s, plan.delete_command(s)) else 'already gone'}")


def logs(s: Settings) -> int:
    """Print worker 0's log, once or until training ends; then its exit code."""
    if s.follow:
        return abs(follow(s))
    next(looks(s))
    return 0


def status(s: Settings) -> None:
    """Print the state of the queued resource, and of training on each worker."""
    state, why = queued_state(s)
    print(f"{s.name} {state} {why}".rstrip())
    if state == "ACTIVE":
        for host, doing in sorted(states(s).items()):
            print(host, doing)


COMMANDS = {one.__name__: one for one in (create, setup, run, logs, status, stop, up, delete)}


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    try:
        s = plan.parse(words)
        if s.dry_run:
            print("\n".join(shlex.join(command) for step in plan.steps(s) for command in step))
            return 0
        result = COMMANDS[s.command](s)
        return result if s.command in ("up", "logs") else 0
    except (UserError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # `logs | head`: Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("interrupted: the TPU and training go on; `up` attaches again, `delete` ends both")
        return 130


if __name__ == "__main__":
    sys.exit(main())
