"""Train with several processes on this machine, as a pod would: one process per host.

    python launch/local.py --processes 2 experiments/tiny.py --run runs/two
    python launch/local.py --processes 2 --devices 4 experiments/tiny.py --mesh.fsdp 8

Everything after the experiment goes to `gpt3jax train`. On CPUs the processes
talk through gloo on loopback. Ctrl-C and SIGTERM are passed on: all save and stop.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE_S = 30
"""Longer than JAX needs to find a dead process (gpt3jax/sharding/distributed.py)."""


def command(arguments: argparse.Namespace, process: int, port: int) -> list[str]:
    """What one of the processes runs."""
    return [
        sys.executable, "-m", "gpt3jax", "train", arguments.experiment,
        "--coordinator", f"127.0.0.1:{port}", "--processes", str(arguments.processes),
        "--process", str(process), *arguments.overrides,
    ]  # fmt: skip


def environment(devices: int | None) -> dict[str, str]:
    """Ours, with so many fake CPU devices per process if asked."""
    if devices is None:
        return dict(os.environ)
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The arguments; what follows the experiment is not ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, help="fake CPU devices of each process")
    parser.add_argument("experiment", help="the experiment file")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="for gpt3jax train")
    arguments = parser.parse_args(words)
    if arguments.processes < 1:
        parser.error("--processes is at least 1")
    return arguments


def main() -> int:
    """Run them all; the exit code of the one that failed first: the others fail for its sake."""
    arguments, port = parse(), free_port()
    running = [
        subprocess.Popen(command(arguments, process, port), env=environment(arguments.devices))
        for process in range(arguments.processes)
    ]

    def pass_on(number: int, _: object) -> None:
        for each in running:
            if each.poll() is None:
                each.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    failed_first = wait_for(running)
    for process, each in enumerate(running):
        if each.returncode < 0:
            name = signal.Signals(-each.returncode).name
            print(f"process {process} was ended by {name}", file=sys.stderr)
    return exit_code(failed_first) if failed_first else 0


def wait_for(running: list[subprocess.Popen]) -> subprocess.Popen | None:
    """Until all have ended; returns the first that failed, after which others have GRACE_S."""
    first, deadline = None, 0.0
    while any(each.poll() is None for each in running):
        time.sleep(0.05)
        failed = [each for each in running if each.poll()]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + GRACE_S
        if first and time.monotonic() > deadline:
            for process, each in enumerate(running):
                if each.poll() is None:
                    print(f"process {process} does not end: killed", file=sys.stderr)
                    each.kill()
    return first or next((each for each in running if each.returncode), None)


def exit_code(process: subprocess.Popen) -> int:
    """As a shell gives it: 128 + n for signal n."""
    return 128 - process.returncode if process.returncode < 0 else process.returncode


if __name__ == "__main__":
    sys.exit(main())
