"""Metrics: one flat JSON object per logged step in metrics.jsonl, also sent to the trackers.

Units: `loss` (of the step's own batch) and `val_loss` in nats/token, `val_bits_per_byte` in
bits/byte, both over `val_windows` of `val_windows_available` held-out windows; rates per second;
`*_s` in seconds. `mfu` is model FLOPs (6 per matrix element and token, plus causal attention) over
the devices' bfloat16 peak; it is absent if the peak is not known, as on a CPU. With
`train.noise_scale` and gradient accumulation, `grad_square` and `grad_variance` (of one token)
belong to the step, and `noise_scale`, in tokens, to the logged steps so far
(monitor/noise_scale.py). `batch_tokens` is also the size of all batches since the previous record
that has it. Further scalars that the step or the loss returns are logged by name.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gpt3jax.config import Model
from gpt3jax.model.param_specs import flops_per_token
from gpt3jax.run_dir import Run, is_logged, parse_record, read_lines
from gpt3jax.runtime.chips import peak_flops
from gpt3jax.sharding import processes
from gpt3jax.train.trackers import DEFAULT, TRACKERS, Background


class MetricsLog:
    """RUN/metrics.jsonl, with one record per step, and the trackers. Only process 0 writes."""

    def __init__(self, run: Run, resumed_at: int, trackers: Sequence[str] = DEFAULT):
        """Open for appending; drops records after the resumed step, which will be repeated."""
        self._is_writer = processes.is_first()
        if not self._is_writer:
            return
        # A run that restarts from the seed also repeats step 0.
        cut_after(run.metrics_file, resumed_at or -1)
        self._file = run.metrics_file.open("a")
        self._trackers = [
            Background(name, partial(TRACKERS[name], run, resumed_at)) for name in trackers
        ]

    def write(self, record: dict[str, Any]) -> None:
        """Log a record; a full disk does not stop training."""
        if not self._is_writer:
            return
        # JSON cannot represent NaN and infinity.
        valid = {k: v if math.isfinite(v) else None for k, v in record.items()}
        with _warn_on_error(f"metrics of step {record['step']}"):
            self._file.write(json.dumps(valid) + "\n")
            self._file.flush()
            finite = {k: v for k, v in valid.items() if k != "step" and v is not None}
            for tracker in self._trackers:
                tracker.send("log", finite, record["step"])

    def sample(self, file: Path, text: str, step: int) -> None:
        """Write a sampled text to a file and to the trackers."""
        if not self._is_writer:
            return
        with _warn_on_error(str(file)):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            for tracker in self._trackers:
                tracker.send("text", "sample", text, step)

    def sync(self) -> None:
        """Flush the records to disk, so that they are as durable as a checkpoint."""
        if self._is_writer:
            with _warn_on_error("metrics"):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._is_writer:
            with _warn_on_error("metrics"):
                self._file.close()
                for tracker in self._trackers:
                    tracker.close()


@contextmanager
def _warn_on_error(what: str) -> Iterator[None]:
    """Turn an OSError, as of a full disk, into a warning: it loses the record, not the run."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what}: not written: {error}", stacklevel=3)


def cut_after(file: Path, step: int) -> None:
    """Drop the records after a step, and lines that a crash left incomplete."""
    lines, remaining = read_lines(file), []
    if not lines:
        return
    for line in lines:
        record = parse_record(line)
        if record and is_logged(record) and record["step"] <= step:
            remaining.append(line + "\n")
    replacement = file.with_suffix(".new")
    replacement.write_text("".join(remaining))
    os.replace(replacement, file)


class Meter:
    """Throughput since the last restart, which follows each evaluation and save.

    The first step is not counted, since it includes compilation.
    """

    def __init__(self, model: Model):
        self._flops_per_token = flops_per_token(model)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()
        self._began = time.perf_counter()
        self._is_warm = False
        self.restart()

    def restart(self) -> None:
        self._steps, self._tokens, self._waited = 0, 0, 0.0
        self._clock = time.perf_counter()

    def add(self, tokens: int, waited: float) -> None:
        """Count a finished step."""
        if not self._is_warm:
            self._is_warm = True
            self.restart()
            return
        self._steps += 1
        self._tokens += tokens
        self._waited += waited

    def read(self) -> dict[str, float]:
        """Means over the counted steps, and the seconds since the loop began."""
        now = time.perf_counter()
        if self._steps == 0:
            return {"seconds": now - self._began}
        rate = self._tokens / (now - self._clock)
        figures = {
            "tokens_per_s": rate,
            "model_flops_per_s": rate * self._flops_per_token,
            "step_s": (now - self._clock) / self._steps,
            "data_wait_s": self._waited / self._steps,
            "seconds": now - self._began,
        }
        if self._peak:
            figures["mfu"] = figures["model_flops_per_s"] / self._peak
        return figures
