"""Trains with several processes on this machine, which stand in for the hosts of a pod.

    python launch/local.py --processes 2 experiments/tiny.py --run runs/two
    python launch/local.py --processes 2 --devices 4 experiments/tiny.py --mesh.fsdp 8

All arguments after the experiment are passed to `gpt3jax train`. On CPUs the processes communicate
through gloo on loopback. Ctrl-C and SIGTERM are forwarded, so that all processes save and stop.
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
"""Longer than JAX takes to detect a dead process (gpt3jax/sharding/distributed.py)."""


def command(arguments: argparse.Namespace, process: int, port: int) -> list[str]:
    """The command of one process."""
    return [
        sys.executable, "-m", "gpt3jax", "train", arguments.experiment,
        "--coordinator", f"127.0.0.1:{port}", "--processes", str(arguments.processes),
        "--process", str(process), *arguments.overrides,
    ]  # fmt: skip


def environment(devices: int | None) -> dict[str, str]:
    """The environment of a process, with this many fake CPU devices unless None."""
    if devices is None:
        return dict(os.environ)
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def free_port() -> int:
    """Returns a TCP port that is currently unused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; the arguments after the experiment are kept verbatim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("--devices", type=int, help="fake CPU devices per process")
    parser.add_argument("experiment", help="the experiment file")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="arguments of gpt3jax train")
    arguments = parser.parse_args(words)
    if arguments.processes < 1:
        parser.error("--processes must be at least 1")
    return arguments


def main() -> int:
    """Runs all processes; returns the exit code of the first one that failed, or 0."""
    arguments, port = parse(), free_port()
    running = [
        subprocess.Popen(command(arguments, process, port), env=environment(arguments.devices))
        for process in range(arguments.processes)
    ]

    def forward(number: int, _: object) -> None:
        for each in running:
            if each.poll() is None:
                each.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    failed_first = wait_for(running)
    for process, each in enumerate(running):
        if each.returncode < 0:
            name = signal.Signals(-each.returncode).name
            print(f"process {process} was ended by {name}", file=sys.stderr)
    return exit_code(failed_first) if failed_first else 0


def wait_for(running: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes] | None:
    """Waits for all processes; returns the first that failed.

    Processes that are still running GRACE_S after the first failure are killed.
    """
    first, deadline = None, 0.0
    while any(each.poll() is None for each in running):
        time.sleep(0.05)
        failed = [each for each in running if each.poll()]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + GRACE_S
        if first and time.monotonic() > deadline:
            for process, each in enumerate(running):
                if each.poll() is None:
                    print(f"process {process} does not exit: killed", file=sys.stderr)
                    each.kill()
    return first or next((each for each in running if each.returncode), None)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """The exit code in shell convention: 128 + n for signal n."""
    return 128 - process.returncode if process.returncode < 0 else process.returncode


if __name__ == "__main__":
    sys.exit(main())
