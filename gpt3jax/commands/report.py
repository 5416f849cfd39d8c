"""`gpt3jax report`: plot training curves and fit scaling laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from gpt3jax.errors import truncate
from gpt3jax.style import wide_console

if TYPE_CHECKING:
    from gpt3jax.plan.scaling_laws import Laws, Point
    from gpt3jax.report.compare import Row


def report(
    runs: Positional[tuple[Path, ...]],
    out: Path | None = None,
    scaling_law: bool = False,
    json: bool = False,
) -> None:
    """Plot and compare the curves of runs, as one HTML page and a PNG per figure.

    Examples:
      gpt3jax report runs/tiny
      gpt3jax report runs/a runs/b --out comparison
      gpt3jax report --scaling-law sweeps/scaling_law/trial-*

    Args:
      runs: One or more runs.
      out: Folder to write. Default: RUN/report; for several runs, report-OTHERS in the first run;
        for scaling laws, scaling-law beside the first run.
      scaling_law: Fit scaling laws to the runs instead, and predict the largest from the others.
      json: Print the table as JSON.
    """
    if scaling_law:
        from gpt3jax.report.scaling_page import write_laws

        points, laws, page = write_laws(runs, out)
        if json:
            result = dataclasses.asdict(laws) | {"points": list(map(dataclasses.asdict, points))}
            print(dumps(result | {"page": str(page)}))
        else:
            _print_laws(points, laws, len(runs))
            print(f"page: {page}")
        return
    from gpt3jax.report.compare import write_report

    rows, figures, page = write_report(runs, out)
    if json:
        written = {"figures": [str(figure) for figure in figures], "page": str(page)}
        print(dumps([dataclasses.asdict(row) | written for row in rows], indent=2))
    else:
        _print_rows(rows)
        print(f"page: {page}")


def _print_rows(rows: Sequence[Row]) -> None:
    """Prints what differs between the runs, and then their results."""
    if rows[0].differs:
        _print_cells("what differs", [(row.name, row.differs) for row in rows])
        print()
    _print_cells("run", [(row.name, row.cells()) for row in rows])


def _print_cells(title: str, cells: Sequence[tuple[str, dict[str, str]]]) -> None:
    """Prints one column per run, in several tables if the terminal is too narrow."""
    from rich.table import Table

    console = wide_console()
    labels = list(cells[0][1])
    widest = max(len(text) for name, row in cells for text in (name, *row.values()))
    per_table = max(1, (console.width - max(map(len, labels))) // (widest + 2))
    for first in range(0, len(cells), per_table):
        table = Table(title, box=None, pad_edge=False)
        for name, _ in cells[first : first + per_table]:
            table.add_column(name, justify="right", overflow="fold")
        for label in labels:
            table.add_row(label, *(row[label] for _, row in cells[first : first + per_table]))
        console.print(table)


def _print_laws(points: Sequence[Point], laws: Laws, n_runs: int) -> None:
    from rich.table import Table

    from gpt3jax.report.scaling_page import describe, describe_point, verdicts

    table = Table("run", box=None, pad_edge=False)
    for name in ("parameters", "tokens", "petaflop/s-days", "val_loss"):
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(truncate(point.name, 40), *describe_point(point))
    wide_console().print(table)
    if len(points) < n_runs:
        print(f"{n_runs - len(points)} of the runs are not at their end: left out")
    for law in laws.laws:
        formula, constants = describe(law)
        print(f"{law.kind}: {formula}, fitted to {law.fitted} runs; {constants}")
    for line in verdicts(points, laws):
        print(f"held out: {line}")
