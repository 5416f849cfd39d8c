"""The report that compares runs: a table, PNG figures and one self-contained page.

Everything comes from what the runs' folders hold; no device is touched.
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
    """What a run came to. None: not measured (yet)."""

    name: str
    path: str
    parameters: int
    """Exact; padding of the vocabulary is not counted."""
    tokens: int
    steps: int
    loss: float | None
    """Training loss, nats/token: of the last logged batch, as in the terminal."""
    val_loss: float | None
    """Validation loss, nats/token: the last one measured."""
    val_bits_per_byte: float | None
    val_windows: int | None
    """Over how many of the held-out windows."""
    val_windows_available: int | None
    base_val_loss: tuple[float, float] | None
    """Of a fine-tuned run, on what its base was trained on, nats/token: at first, and at the end.
    What it grew by was forgotten."""
    tokens_per_s: float | None
    """Median over the records; as for mfu."""
    mfu: float | None
    seconds: float | None
    """In training, over all resumes: each step once, so steps done again are not counted."""
    wall_seconds: float | None
    """From the first session's beginning to the last one's end."""
    goodput: float | None
    """Share of the wall time that is `seconds`."""
    seconds_by_phase: dict[str, float] | None
    """What the wall time went to; see `gpt3jax.train.monitor.goodput.PHASES`."""
    device: str
    code: str
    """Version and commit; several, if the run was resumed under another."""

    def cells(self) -> dict[str, str]:
        """The row as a person reads it, by label."""
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
    """Draw the figures and the page, and print the table.

    Args:
      runs: Folders of runs.
      out: Folder to write; if None, RUN/report, or of several runs one of its own in the first.
      as_json: Print the rows as a JSON list instead of a table.

    Returns:
      The page: index.html, beside the PNG figures.

    Raises:
      ConfigError: no runs, a run that is missing or has no metrics, or `out`
        cannot be written.
    """
    if not runs:
        raise ConfigError("no run is named: there is nothing to report. Name one or more folders")
    opened = [open_run(path) for path in runs]
    names = [run.path.resolve().name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in opened]
    rows, curves = zip(*map(_row_and_curve, opened, names), strict=True)
    cells = [(row.name, row.cells()) for row in rows]
    samples = [(name, _samples(run)) for name, run in zip(names, opened, strict=True)]
    # The report of one run alone stays, and so do comparisons with others.
    own = "-".join(["report", *(run.path.resolve().name for run in opened[1:])])
    own = own if len(own) < 100 else f"report-{len(opened)}-runs-{short_hash(own)}"
    folder = out or opened[0].path / own
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
    # Imported here: it needs jax, which takes seconds.
    from gpt3jax.model.param_specs import count_params, flops_per_token

    events = read_events(run.ledger_file)
    # Of a run that ended early, the state that counts is an earlier one; the curve shows all.
    lasting = [record for record in records if record["step"] <= _end(events)] or records

    def values(metric: str) -> list[float]:
        return [record[metric] for record in lasting if record.get(metric) is not None]

    losses, rates, mfu = values("loss"), values("tokens_per_s"), values("mfu")
    of_base = values("base_val_loss")
    spent = goodput(run)
    model = run.experiment().model
    row = Row(
        name=name,
        path=str(run.path),
        parameters=count_params(model),
        tokens=lasting[-1]["tokens"],
        steps=lasting[-1]["step"],
        loss=(losses or [None])[-1],
        val_loss=(values("val_loss") or [None])[-1],
        val_bits_per_byte=(values("val_bits_per_byte") or [None])[-1],
        val_windows=(values("val_windows") or [None])[-1],
        val_windows_available=(values("val_windows_available") or [None])[-1],
        base_val_loss=(of_base[0], of_base[-1]) if of_base else None,
        tokens_per_s=statistics.median(rates) if rates else None,
        mfu=statistics.median(mfu) if mfu else None,
        seconds=spent and spent.seconds_by_phase["step"],
        wall_seconds=spent and spent.wall_seconds,
        goodput=spent and spent.goodput,
        seconds_by_phase=spent and spent.seconds_by_phase,
        device=_begun(events, "{device}"),
        code=_begun(events, "{gpt3jax} ({commit})"),
    )
    return row, Curve(name, records, flops_per_token(model), spent)


def _end(events: list[dict[str, Any]]) -> float:
    """The step that a run is over at, if it ended early; its state is the newest that there is."""
    end = math.inf
    for event in events:
        if event["event"] == "early stop" and isinstance(event.get("step"), int):
            end = event["step"]
        elif event["event"] in ("start", "resume"):
            end = math.inf
    return end


def _begun(events: list[dict[str, Any]], words: str) -> str:
    """What the starts and resumes say, each once, in their order."""
    begun = [event for event in events if event["event"] in ("start", "resume")]
    known = [defaultdict(lambda: "unknown", event) for event in begun]
    return ", ".join(dict.fromkeys(words.format_map(event) for event in known)) or "–"


def _samples(run: Run) -> list[tuple[int, str]]:
    """Step and text of the first and the last sample, or of the only one."""
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
    """Figures down, runs across: as many at a time as fit, or all of them when piped."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000
    labels = list(cells[0][1])
    widest = max(len(text) for name, row in cells for text in (name, *row.values()))
    fit = max(1, (console.width - max(map(len, labels))) // (widest + 2))
    for first in range(0, len(cells), fit):
        table = Table("run", box=None, pad_edge=False)
        for name, _ in cells[first : first + fit]:
            table.add_column(name, justify="right", overflow="fold")
        for label in labels:
            table.add_row(label, *(row[label] for _, row in cells[first : first + fit]))
        console.print(table)
