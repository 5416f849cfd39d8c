"""Broken input drawn by hypothesis, and the bounds that reading it must keep to."""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gpt3jax.cli import one_line
from gpt3jax.errors import ConfigError, RunError

FUZZ = int(os.environ.get("GPT3JAX_FUZZ", 0))
"""Mutations per test under `make faults`; 0: few."""
SECONDS = 5
MEMORY = 500 << 10
"""KiB by which the process may grow."""

DEEP, HUGE = "@deep@", "@huge@"
AS_TEXT = {f'"{DEEP}"': "[" * 10_000 + "]" * 10_000, f'"{HUGE}"': "1e999"}
"""Nodes that json.dumps cannot write."""
HOSTILE = (
    None, True, float("nan"), 1e308, -1e308, 1e-320, 0, -1, 1.5, 2**63, 10**30, 10**400, "", "x",
    "x" * 100_000, "\0", "\ud800", "a\nb", "NaN", DEEP, HUGE, [], [[]], [1, "a"], {}, {"a": {}},
    "../../../etc/passwd", "/dev/zero", "/dev/full", "/", ".",
)  # fmt: skip
OTHERS = ("/etc/passwd",)
"""Not to be read, either."""


class Hang(BaseException):
    """Out of time; no `except Exception` takes it for its own."""


def tries(few: int, cost: int = 1) -> settings:
    """So many mutations, the same ones each time; `make faults` has its own number / cost."""
    return settings(
        max_examples=FUZZ // cost or few, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@st.composite
def broken_bytes(draw: Callable[[Any], Any], whole: bytes) -> bytes:
    """Bytes that were changed in one to three places."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(("flip", "delete", "insert", "truncate", "duplicate", "swap")))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "delete":
            del content[at:end]
        elif kind == "insert":
            content[at:at] = draw(st.sampled_from((b"\0", b"\xff\xfe", b'"', b"9" * 5000)) | few)
        elif kind == "truncate":
            del content[at:]
        elif kind == "duplicate":
            content[at:at] = content[at:end]
        elif kind == "swap":
            content[at:end] = content[at:end][::-1]
    return bytes(content)


few = st.binary(min_size=1, max_size=8)


@st.composite
def broken_value(draw: Callable[[Any], Any], value: Any) -> Any:
    """A JSON value in which one node was replaced, left out, renamed or added."""
    value = json.loads(json.dumps(value))
    holder, key = draw(st.sampled_from([({"": value}, ""), *_places(value)]))
    kind = draw(st.sampled_from(("replace", "replace", "replace", "leave out", "rename", "add")))
    if kind == "leave out" and key != "":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict) and key != "":
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "add" and isinstance(holder, dict) and key != "":
        holder["extra"] = draw(st.sampled_from(HOSTILE))
    elif key == "":
        return draw(st.sampled_from(HOSTILE))
    else:
        holder[key] = draw(st.sampled_from(HOSTILE))
    return value


def as_bytes(value: Any) -> bytes:
    """JSON, with what only text can hold."""
    text = json.dumps(value)
    for name, written in AS_TEXT.items():
        text = text.replace(name, written)
    return text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node below the value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def refused(work: Callable[[], Any]) -> str | None:
    """None if the work succeeds, or the one line that refuses it; anything else goes up."""
    try:
        work()
    except (ConfigError, RunError) as error:
        line = one_line(error)
        assert "\n" not in line and len(line) <= 300, line
        return line
    return None


_touched: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _touched is None:
        return
    if event == "open":
        path, mode, flags = arguments
        is_written = any(letter in (mode or "") for letter in "wax+") or flags & 3
        if isinstance(path, str | bytes) and (is_written or os.fsdecode(path) in OTHERS):
            _touched.append(os.fsdecode(path))
    elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"):
        _touched.extend(os.fsdecode(each) for each in arguments if isinstance(each, str | bytes))


sys.addaudithook(_watch)


@contextmanager
def bounds(folder: Path, seconds: float = SECONDS) -> Iterator[None]:
    """What happens inside ends in time, takes little memory, and changes this folder alone.

    In so many seconds of this process's own time; by the clock on the wall, which
    goes on while others have the machine, in six times as many.
    """
    global _touched

    def out_of_time(*_: Any) -> None:
        raise Hang(f"more than {6 * seconds} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, 6 * seconds)
    began = time.process_time()
    _touched = []
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        touched, _touched = _touched, None
    taken = time.process_time() - began
    assert taken < seconds, f"{taken:.1f} s of processor time"
    here = folder.resolve()
    outside = [each for each in touched if not Path(each).resolve().is_relative_to(here)]
    assert not [each for each in outside if each not in ("/dev/null", "/dev/tty")], outside
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY, f"{grown} KiB more"
