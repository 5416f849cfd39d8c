"""Report that compares runs: a table, PNG figures and a self-contained HTML page.

It reads the run directories only and uses no accelerator.
Units: loss in nats/token, throughput in tokens/s.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt3jax.errors import ConfigError
from gpt3jax.report.differences import what_differs
from gpt3jax.report.page import Curve, draw_figures, page
from gpt3jax.run_dir import Run, check_output_folder, open_run, read_events
from gpt3jax.serde import short_hash
from gpt3jax.train.monitor.display import over_windows
from gpt3jax.train.monitor.goodput import goodput


@dataclass(frozen=True)
class Row:
    """Summary of a run; None for values that were not measured."""

    name: str
    path: str
    parameters: int
    """Exact number of parameters, excluding vocabulary padding."""
    tokens: int
    steps: int
    loss: float | None
    """Training loss of the last logged batch, nats/token."""
    val_loss: float | None
    """Last validation loss, nats/token."""
    val_bits_per_byte: float | None
    val_windows: int | None
    """Number of held-out windows that the validation loss was measured on."""
    val_windows_available: int | None
    base_val_loss: tuple[float, float] | None
    """First and last loss of a fine-tuned run on its base model's data, nats/token. The increase
    measures forgetting."""
    tokens_per_s: float | None
    """Median over the records, like `mfu`."""
    mfu: float | None
    seconds: float | None
    """Training time over all sessions, excluding steps that were repeated after a restart."""
    wall_seconds: float | None
    """From the start of the first session to the end of the last one."""
    goodput: float | None
    """`seconds` as a share of `wall_seconds`."""
    seconds_by_phase: dict[str, float] | None
    """Wall time by phase; see `gpt3jax.train.monitor.goodput.PHASES`."""
    device: str
    code: str
    """Version and commit; several if the run was resumed with different ones."""
    differs: dict[str, str]
    """The run's values of what differs between the runs, by dotted name (differences.py)."""

    def cells(self) -> dict[str, str]:
        """The formatted values by label."""
        base = self.base_val_loss
        return {
            "parameters": f"{self.parameters:,}",
            "tokens": f"{self.tokens:,}",
            "steps": f"{self.steps:,}",
            "training loss of the last logged batch, nats/token": _number(self.loss, ".4f"),
            "validation loss, nats/token": _number(self.val_loss, ".4f")
            + over_windows(dataclasses.asdict(self)),
            "validation, bits/byte": _number(self.val_bits_per_byte, ".4f"),
            "base's validation, nats/token": f"{base[0]:.4f}, then {base[1]:.4f}" if base else "–",
            "tokens/s, median": _number(self.tokens_per_s, ",.0f"),
            "MFU, median": _number(self.mfu, ".1%"),
            "training, hours": _number(self.seconds and self.seconds / 3600, ",.3f"),
            "wall, hours": _number(self.wall_seconds and self.wall_seconds / 3600, ",.3f"),
            "goodput": _number(self.goodput, ".1%"),
            "device": self.device,
            "code": self.code,
        }


def write_report(
    runs: Sequence[Path], out: Path | None = None
) -> tuple[list[Row], list[Path], Path]:
    """Writes the figures and the page.

    Args:
      runs: Run directories.
      out: Output directory. If None, RUN/report for one run, and a directory named after the
        other runs inside the first for several.

    Returns:
      A row for each run, the PNG files of the figures, and index.html in the same directory.

    Raises:
      ConfigError: there are no runs, a run is missing or has no metrics, or `out` cannot be
        written.
    """
    if not runs:
        raise ConfigError("no runs given: there is nothing to report. Name one or more folders")
    opened = [open_run(path) for path in runs]
    names = [run.path.resolve().name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in opened]
    differing = what_differs(opened)
    rows, curves = zip(*map(_row_and_curve, opened, names, differing), strict=True)
    samples = [(name, _samples(run)) for name, run in zip(names, opened, strict=True)]
    # Comparisons with different runs do not overwrite each other.
    default = "-".join(["report", *(run.path.resolve().name for run in opened[1:])])
    if len(default) >= 100:
        default = f"report-{len(opened)}-runs-{short_hash(default)}"
    with writing(out, opened[0].path / default) as folder:
        figures = draw_figures(curves, folder)
        file = folder / "index.html"
        cells = [(row.name, row.cells()) for row in rows]
        differs = list(zip(names, differing, strict=True))
        file.write_text(page(differs, cells, curves, figures, samples), encoding="utf-8")
    return list(rows), figures, file


@contextmanager
def writing(out: Path | None, default: Path) -> Iterator[Path]:
    """Makes the output directory: `out`, or else the default one, if it is safe to write.

    Raises:
      ConfigError: it cannot be written, or the default one has links, FIFOs or devices.
    """
    folder = out or default
    if out is None:
        check_output_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Choose another --out") from error


def _row_and_curve(run: Run, name: str, differs: dict[str, str]) -> tuple[Row, Curve]:
    records = [record for record in run.metrics() if record.get("tokens") is not None]
    if not records:
        raise ConfigError(f"{run.path} has no metrics: no step was logged yet. Train it for longer")
    # A local import, because importing jax takes seconds.
    from gpt3jax.model.param_specs import count_params, flops_per_token

    events = read_events(run.ledger_file)
    # With early stopping the result is an earlier state. The curve still shows all records.
    final_step = _final_step(events)
    valid = [record for record in records if record["step"] <= final_step] or records

    def values(metric: str) -> list[Any]:
        return [record[metric] for record in valid if record.get(metric) is not None]

    def last(metric: str) -> Any:
        return next(reversed(values(metric)), None)

    def median(metric: str) -> float | None:
        return statistics.median(values(metric)) if values(metric) else None

    base_losses, times, model = values("base_val_loss"), goodput(run), run.experiment().model
    row = Row(
        name=name,
        path=str(run.path),
        parameters=count_params(model),
        tokens=valid[-1]["tokens"],
        steps=valid[-1]["step"],
        loss=last("loss"),
        val_loss=last("val_loss"),
        val_bits_per_byte=last("val_bits_per_byte"),
        val_windows=last("val_windows"),
        val_windows_available=last("val_windows_available"),
        base_val_loss=(base_losses[0], base_losses[-1]) if base_losses else None,
        tokens_per_s=median("tokens_per_s"),
        mfu=median("mfu"),
        seconds=times and times.seconds_by_phase["step"],
        wall_seconds=times and times.wall_seconds,
        goodput=times and times.goodput,
        seconds_by_phase=times and times.seconds_by_phase,
        device=_session_values(events, "{device}"),
        code=_session_values(events, "{gpt3jax} ({commit})"),
        differs=differs,
    )
    return row, Curve(name, records, flops_per_token(model), times)


def _final_step(events: list[dict[str, Any]]) -> float:
    """The step whose state early stopping selected; infinity if the run did not stop early."""
    end = math.inf
    for event in events:
        if event["event"] == "early stop" and isinstance(event.get("step"), int):
            end = event["step"]
        elif event["event"] in ("start", "resume"):
            end = math.inf
    return end


def _session_values(events: list[dict[str, Any]], template: str) -> str:
    """Formats the template for each start and resume event, without repetitions."""
    sessions = [event for event in events if event["event"] in ("start", "resume")]
    fields = [defaultdict(lambda: "unknown", event) for event in sessions]
    return ", ".join(dict.fromkeys(template.format_map(event) for event in fields)) or "–"


def _samples(run: Run) -> list[tuple[int, str]]:
    """Step and text of the first and last samples, or of the only one."""
    files = {int(f.stem): f for f in run.samples.glob("*.txt") if f.stem.isdecimal()}
    check_output_folder(run.samples)
    ends = sorted(files)[:1] + sorted(files)[1:][-1:]
    return [(step, files[step].read_text(encoding="utf-8", errors="replace")) for step in ends]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
