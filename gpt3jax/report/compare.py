"""Report that compares runs: a table, PNG figures and a self-contained HTML page.

It reads the run directories only and uses no accelerator.
Units: loss in nats/token, throughput in tokens/s.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt3jax.errors import ConfigError
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

    def cells(self) -> dict[str, str]:
        """The formatted values by label."""
        return {
            "parameters": f"{self.parameters:,}",
            "tokens": f"{self.tokens:,}",
            "steps": f"{self.steps:,}",
            "training loss of the last logged batch, nats/token": _number(self.loss, ".4f"),
            "validation loss, nats/token": _number(self.val_loss, ".4f")
            + over_windows(dataclasses.asdict(self)),
            "validation, bits/byte": _number(self.val_bits_per_byte, ".4f"),
            "base's validation, nats/token": _change(self.base_val_loss),
            "tokens/s, median": _number(self.tokens_per_s, ",.0f"),
            "MFU, median": _number(self.mfu, ".1%"),
            "training, hours": _hours(self.seconds),
            "wall, hours": _hours(self.wall_seconds),
            "goodput": _number(self.goodput, ".1%"),
            "device": self.device,
            "code": self.code,
        }


def write_report(runs: Sequence[Path], out: Path | None = None, *, as_json: bool = False) -> Path:
    """Writes the figures and the page, and prints the table.

    Args:
      runs: Run directories.
      out: Output directory. If None, RUN/report for one run, and a directory named after the
        other runs inside the first for several.
      as_json: Prints the rows as a JSON list instead of a table.

    Returns:
      Path of index.html; the PNG figures are in the same directory.

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
    rows, curves = zip(*map(_row_and_curve, opened, names), strict=True)
    cells = [(row.name, row.cells()) for row in rows]
    samples = [(name, _samples(run)) for name, run in zip(names, opened, strict=True)]
    # Comparisons with different runs do not overwrite each other.
    default = "-".join(["report", *(run.path.resolve().name for run in opened[1:])])
    if len(default) >= 100:
        default = f"report-{len(opened)}-runs-{short_hash(default)}"
    folder = out or opened[0].path / default
    if out is None:
        check_output_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = draw_figures(curves, folder)
        file = folder / "index.html"
        file.write_text(page(cells, curves, figures, samples), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Choose another --out") from error
    if as_json:
        written = {"figures": [str(figure) for figure in figures], "page": str(file)}
        print(json.dumps([dataclasses.asdict(row) | written for row in rows], indent=2))
    else:
        _print_table(cells)
        print(f"page: {file}")
    return file


def _row_and_curve(run: Run, name: str) -> tuple[Row, Curve]:
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

    losses, rates, mfu = values("loss"), values("tokens_per_s"), values("mfu")
    base_losses = values("base_val_loss")
    times = goodput(run)
    model = run.experiment().model
    row = Row(
        name=name,
        path=str(run.path),
        parameters=count_params(model),
        tokens=valid[-1]["tokens"],
        steps=valid[-1]["step"],
        loss=(losses or [None])[-1],
        val_loss=(values("val_loss") or [None])[-1],
        val_bits_per_byte=(values("val_bits_per_byte") or [None])[-1],
        val_windows=(values("val_windows") or [None])[-1],
        val_windows_available=(values("val_windows_available") or [None])[-1],
        base_val_loss=(base_losses[0], base_losses[-1]) if base_losses else None,
        tokens_per_s=statistics.median(rates) if rates else None,
        mfu=statistics.median(mfu) if mfu else None,
        seconds=times and times.seconds_by_phase["step"],
        wall_seconds=times and times.wall_seconds,
        goodput=times and times.goodput,
        seconds_by_phase=times and times.seconds_by_phase,
        device=_session_values(events, "{device}"),
        code=_session_values(events, "{gpt3jax} ({commit})"),
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


def _hours(seconds: float | None) -> str:
    return _number(seconds and seconds / 3600, ",.3f")


def _change(values: tuple[float, float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f}, then {values[1]:.4f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _print_table(cells: list[tuple[str, dict[str, str]]]) -> None:
    """Prints one column per run, in several tables if the terminal is too narrow."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000
    labels = list(cells[0][1])
    widest = max(len(text) for name, row in cells for text in (name, *row.values()))
    per_table = max(1, (console.width - max(map(len, labels))) // (widest + 2))
    for first in range(0, len(cells), per_table):
        table = Table("run", box=None, pad_edge=False)
        for name, _ in cells[first : first + per_table]:
            table.add_column(name, justify="right", overflow="fold")
        for label in labels:
            table.add_row(label, *(row[label] for _, row in cells[first : first + per_table]))
        console.print(table)
