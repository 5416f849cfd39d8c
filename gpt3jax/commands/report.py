"""`gpt3jax report`: curves and laws of runs."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def report(
    runs: Positional[tuple[Path, ...]],
    out: Path | None = None,
    scaling_law: bool = False,
    json: bool = False,
) -> None:
    """Draw and compare the curves of runs: one HTML page, and each figure as PNG.

    Examples:
      gpt3jax report runs/tiny
      gpt3jax report runs/a runs/b --out comparison
      gpt3jax report --scaling-law sweeps/scaling_law/trial-*

    Args:
      runs: One run or more.
      out: Folder to write. If not given: RUN/report; of several runs, RUN/report-OTHERS in the
        first; of laws, scaling-law beside it.
      scaling_law: Fit laws of scale to the runs instead, and predict the largest.
      json: Print the table as JSON.
    """
    if scaling_law:
        from gpt3jax.report.scaling_page import write_laws

        write_laws(runs, out, as_json=json)
        return
    from gpt3jax.report.compare import write_report

    write_report(runs, out, as_json=json)
