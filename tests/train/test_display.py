"""What a person sees while a model trains, on a wide and a narrow terminal, and in a pipe."""

import io
import re
import time

import pytest
from rich.console import Console

from gpt3jax.train.monitor import display
from gpt3jax.train.monitor.display import Display

MEASURED = {
    "step": 50, "tokens": 5_000, "val_loss": 3.25, "val_bits_per_byte": 1.9381,
    "val_windows": 64, "val_windows_available": 140,
}  # fmt: skip


def seen(monkeypatch, width, *, terminal=True):
    """All that a run printed which was resumed at step 40, 40 % of the way."""
    written = io.StringIO()
    terminal = {"file": written, "force_terminal": terminal, "width": width}
    monkeypatch.setattr(display, "Console", lambda **given: Console(**given, **terminal))
    bar = Display(10_000, 4_000, 40)
    for step in range(41, 61):
        bar.show({"step": step, "tokens": 100 * step, "loss": 4.0 - step / 100,
                  "tokens_per_s": 12_345.6})  # fmt: skip
        if step == 50:
            bar.show(MEASURED)
    bar.close()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_bar_has_the_step_the_share_and_the_time_left_at_any_width(monkeypatch, width):
    text = seen(monkeypatch, width)
    first, last = (re.split(r"[\r\n]+", text.strip())[at] for at in (0, -1))
    assert "step 40  40%" in first, "a resumed bar begins where the run is"
    assert re.search(r"step 60  60%\s+[\d:-]+ left", last)
    assert all(len(line) <= width or "validation" in line for line in re.split(r"[\r\n]+", text))


def test_a_terminal_keeps_a_line_of_each_evaluation_and_each_tenth(monkeypatch):
    lines = seen(monkeypatch, 120).splitlines()
    kept = [line for line in lines if re.match(r"\s*step +\d+ +\d+%  \S", line.rsplit("\r")[-1])]
    whole = "\n".join(lines)
    assert (
        "step      50   50%  validation 3.250 nats/token, 1.938 bits/byte (64 of 140 windows)"
    ) in whole
    assert "step      50   50%  loss 3.500 nats/token  12,346 tokens/s" in whole
    assert "step      60   60%  loss 3.400 nats/token" in whole
    assert "step      41" not in whole and kept


@pytest.mark.parametrize("terminal", [True, False])
def test_a_compilation_is_shown_with_its_seconds(monkeypatch, terminal):
    written = io.StringIO()
    settings = {"file": written, "force_terminal": terminal, "width": 120}
    monkeypatch.setattr(display, "Console", lambda **given: Console(**given, **settings))
    monkeypatch.setattr(display, "COMPILING_S", 0.3)
    bar = Display(10_000, 0, 0)
    with bar.compiling("train_step"):
        time.sleep(1.2)
    bar.show({"step": 1, "tokens": 100, "loss": 4.0})
    bar.close()
    said = written.getvalue()
    assert "compiling train_step, 1 s" in said
    assert "compiling" not in said[said.index("loss 4.000") :]


def test_a_pipe_gets_a_line_of_each_record(monkeypatch):
    lines = seen(monkeypatch, 80, terminal=False).splitlines()
    assert len(lines) == 21 and lines[0].startswith("step      41   41%  loss 3.590 nats/token")
