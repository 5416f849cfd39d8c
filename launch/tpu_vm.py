"""Trains on Cloud TPU VMs: one queued resource, and the same command on every host of every slice.

launch/tpu_vm_plan.py builds the commands; this file runs them, waits for them and retries.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tpu_vm_plan as plan
from tpu_vm_plan import Command, Settings, Step, UserError

Completed = subprocess.CompletedProcess[bytes]

FINAL = (0, 1, 2)
"""Exit codes of training after which a restart is useless."""
VANISHED = -1
"""Exit code of training that ended without one."""
PATIENCE = 20
"""Consecutive failures before an operation is considered broken."""
STEADY_SECONDS = 900
"""An attempt that lasts this long resets the backoff."""
WAITING = {"CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES", "STATE_UNSPECIFIED"}
DEAD_NODE = {"PREEMPTED", "TERMINATED", "STOPPING", "STOPPED", "DELETING"}
PERMANENT = re.compile(
    "(?i)permission_denied|unauthenticated|not_found|account selected|argument|parsing"
    "|quota(?!.*per minute)"
)
"""Pattern of gcloud errors that are permanent."""
STATE = re.compile(r"^@state (\S+) (running|vanished|idle|exit \d+)$", re.MULTILINE)


class LaunchError(Exception):
    """An operation failed."""


class TransientError(LaunchError):
    """A failure that may be transient."""


class TpuLostError(TransientError):
    """The TPU was preempted or deleted."""


def say(text: str) -> None:
    """Prints a progress message to stderr, as stdout carries the log of training."""
    print(f"{time.strftime('%F %T')} {text}", file=sys.stderr, flush=True)


def call(command: Command) -> Completed:
    """Runs a command and returns its result, also if it failed."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found on PATH. Install it, then try again") from None


def reason(completed: Completed) -> str:
    """The line of a command's output that best explains its failure."""
    output = (completed.stdout + b"\n" + completed.stderr).decode(errors="replace")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(\w*error|fatal|e):", line)]
    last = (errors or lines or [f"exit code {completed.returncode}"])[-1]
    boilerplate = r"^ERROR: (\(gcloud[^)]*\) )?| This command is authenticated .*"
    return re.sub(boilerplate, "", last)[:300].rstrip(".")


def failed(what: str, why: str, kind: type[LaunchError] = LaunchError) -> LaunchError:
    """Creates an error that includes a fix."""
    fix = "Fix that, then try again"
    if "quota" in why.lower():
        fix = "Delete queued resources that are SUSPENDED or FAILED (they use quota), or raise it"
    return kind(f"{what}: {why}. {fix}")


def perform(s: Settings, *steps: Step) -> str:
    """Runs steps in order, each on all slices concurrently; returns their output."""
    outputs = []
    for step in steps:
        with ThreadPoolExecutor(len(step)) as pool:
            for completed in pool.map(call, step):
                if completed.returncode:
                    raise step_error(s, completed)
                outputs.append(completed.stdout.decode(errors="replace"))
    return "".join(outputs)


def step_error(s: Settings, completed: Completed) -> Exception:
    """The error for a failed step: a user error, or a failure of the command, network or TPU."""
    if "diff" in completed.args and completed.returncode == 1:
        return UserError("uncommitted changes: only a commit can be sent. Commit or stash them")
    if "tpu-vm" not in completed.args:
        return failed(shlex.join(completed.args), reason(completed))
    if completed.returncode == plan.BUSY:
        return LaunchError(f"{s.name}: training is running. `logs` follows it, `stop` ends it")
    if cause := lost(s):
        return TpuLostError(f"{cause}. `up` creates a new one and resumes")
    return failed(
        s.name, reason(completed), TransientError if completed.returncode == 255 else LaunchError
    )


def retry(s: Settings, command: Command) -> Completed | None:
    """Retries a gcloud command until it succeeds; None if the resource does not exist.

    Raises:
      LaunchError: the error is permanent, or there were PATIENCE failures.
    """
    why = ""
    for failures in range(PATIENCE):
        completed = call(command)
        if completed.returncode == 0:
            return completed
        why = reason(completed)
        if "NOT_FOUND" in why:
            return None
        if PERMANENT.search(why):
            break
        time.sleep(s.pause(failures))
    raise failed(" ".join(command[3:6]), why)


def describe(s: Settings, node: str = "") -> dict[str, Any]:
    """gcloud's description of the queued resource or a node; empty if it does not exist."""
    completed = retry(s, plan.describe_command(s, node))
    return json.loads(completed.stdout) if completed else {}


def queued_state(s: Settings) -> tuple[str, str]:
    """State of the queued resource, and the error message of the service."""
    state = describe(s).get("state", {"state": "ABSENT"})
    return state.get("state", "?"), state.get("failedData", {}).get("error", {}).get("message", "")


def lost(s: Settings) -> str:
    """Why the TPU is not available; empty if it is."""
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
    """Requests the TPU unless it exists, and waits for it; returns whether it is new.

    Raises:
      TpuLostError: it was preempted before it became active.
      LaunchError: it cannot be created.
    """
    completed = call(plan.create_command(s))
    new = completed.returncode == 0
    if not new and "ALREADY_EXISTS" not in reason(completed):
        kind = LaunchError if PERMANENT.search(reason(completed)) else TransientError
        raise failed(f"{s.name} was not created", reason(completed), kind)
    say(f"{s.name}: {'requested' if new else 'exists already and is not changed'}")
    last = ""
    while True:
        state, why = queued_state(s)
        if state != last:
            say(f"{s.name}: {state}")
        if state == "ACTIVE":
            return new
        if state not in WAITING:
            kind = LaunchError if PERMANENT.search(why) else TpuLostError
            raise failed(f"{s.name} is {state}", why or "preempted or deleted", kind)
        last = state
        time.sleep(s.poll_seconds)


def pack(s: Settings) -> None:
    """Packs the commit to train with."""
    s.bundle.parent.mkdir(parents=True, exist_ok=True)
    perform(s, *plan.pack_steps(s))


def install(s: Settings) -> None:
    """Copies the packed commit to all workers and installs it."""
    say(f"{s.name}: installing on all workers, which takes several minutes")
    perform(s, *plan.install_steps(s))


def setup(s: Settings) -> None:
    """Installs the current commit on all workers."""
    pack(s)
    install(s)


def run(s: Settings) -> None:
    """Starts training on all workers."""
    for line in sorted(perform(s, plan.run_step(s)).splitlines()):
        say(line)


def stop(s: Settings) -> None:
    """Makes training save and stop on all workers; `run` resumes it."""
    perform(s, plan.stop_step(s))


def states(s: Settings) -> dict[str, str]:
    """State of each worker, by host."""
    return dict(STATE.findall(perform(s, plan.states_step(s))))


def poll(s: Settings) -> Iterator[str]:
    """Prints worker 0's log as it grows; yields its state after each poll.

    A lost connection loses no output, as each poll starts at the byte after the last one printed.

    Raises:
      TpuLostError: the TPU was preempted or deleted.
      PassingError: PATIENCE polls in a row failed.
    """
    seen = failures = 0
    while True:
        completed = call(plan.poll_command(s, seen))
        # gcloud may repeat a broken command; only the output after the last state line counts.
        state = list(STATE.finditer(completed.stdout.decode("latin-1")))[-1:]
        if completed.returncode == 0 and state:
            failures = 0
            new = completed.stdout[state[0].end() + 1 :]
            sys.stdout.buffer.write(new)
            sys.stdout.flush()
            seen += len(new)
            yield state[0][2]
        else:
            failures += 1
            if cause := lost(s):
                raise TpuLostError(f"{cause}. `up` creates a new one and resumes")
            if failures == PATIENCE:
                raise failed(f"{s.nodes[0]}: no connection", reason(completed), TransientError)
            say(f"{s.nodes[0]}: no connection, trying again")
        time.sleep(s.poll_seconds)


def exit_code(state: str) -> int:
    """The exit code in a worker's state."""
    if state == "idle":
        raise LaunchError("training was never started on a worker: it has no log. Use `run`")
    return int(state.split()[1]) if state.startswith("exit") else VANISHED


def follow(s: Settings) -> int:
    """Prints worker 0's log until training exits there; returns the exit code."""
    return next(exit_code(state) for state in poll(s) if state != "running")


def overall_exit_code(s: Settings, code: int) -> int:
    """Exit code of training on all workers, given worker 0's.

    A final code of any worker takes precedence: the peers of a failed worker only know that it
    died.
    """
    results = ["running"]
    for _ in range(PATIENCE):
        try:
            results = list(states(s).values())
        except TransientError:
            if code in FINAL:
                return code
            raise
        if "running" not in results:
            break
        time.sleep(s.poll_seconds)
    bad = [exit_code(state) for state in results if state not in ("running", "exit 0")]
    return next((one for one in bad if one in FINAL), code or (bad or [0])[0])


def attempt(s: Settings) -> int:
    """Creates the TPU and starts training if needed, follows it, and returns its exit code."""
    new = create(s)
    if new or set(states(s).values()) != {"running"}:
        if not new:
            stop(s)
        install(s)
        run(s)
    return overall_exit_code(s, follow(s))


def up(s: Settings) -> int:
    """Trains one commit to the end, or to a permanent failure, and recreates preempted TPUs."""
    pack(s)
    quick, why = 0, ""
    for left in reversed(range(s.max_recreations + 1)):
        began = time.monotonic()
        try:
            code = attempt(s)
            if code in FINAL:
                say(
                    f"training exited with {code}; {s.name} still costs money until you `delete` it"
                )
                return code
            why = f"training ended with {'no exit code' if code == VANISHED else code}"
            is_lost = False
        except TransientError as error:
            why, is_lost = str(error).split(". ")[0], isinstance(error, TpuLostError)
        if left:
            say(f"{why}: starting again, {left} more times at most")
            if is_lost:
                delete(s)
            quick = 0 if time.monotonic() - began > STEADY_SECONDS else quick + 1
            time.sleep(s.pause(quick))
    raise LaunchError(f"gave up after {s.max_recreations} restarts: {why}. See `status`, `logs`")


def delete(s: Settings) -> None:
    """Deletes the queued resource and its nodes, if they exist."""
    say(f"{s.name}: {'deleted' if retry(s, plan.delete_command(s)) else 'already gone'}")


def logs(s: Settings) -> int:
    """Prints worker 0's log, once or until training exits; returns its exit code."""
    if s.follow:
        return abs(follow(s))
    next(poll(s))
    return 0


def status(s: Settings) -> None:
    """Prints the state of the queued resource, and of training on each worker."""
    state, why = queued_state(s)
    print(f"{s.name} {state} {why}".rstrip())
    if state == "ACTIVE":
        for host, worker_state in sorted(states(s).items()):
            print(host, worker_state)


COMMANDS: dict[str, Callable[[Settings], int | None]] = {
    "create": create,
    "setup": setup,
    "run": run,
    "logs": logs,
    "status": status,
    "stop": stop,
    "up": up,
    "delete": delete,
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    try:
        s = plan.parse(words)
        if s.dry_run:
            print("\n".join(shlex.join(command) for step in plan.steps(s) for command in step))
            return 0
        result = COMMANDS[s.command](s)
        return result or 0 if s.command in ("up", "logs") else 0
    except (UserError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # For `logs | head`: avoids a traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("interrupted: the TPU and training continue; `up` attaches again, `delete` ends both")
        return 130


if __name__ == "__main__":
    sys.exit(main())
