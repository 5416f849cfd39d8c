"""`gpt3jax report`: plot training curves and fit scaling laws."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


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

        write_laws(runs, out, as_json=json)
        return
    from gpt3jax.report.compare import write_report

    write_report(runs, out, as_json=json)
