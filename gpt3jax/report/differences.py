"""In what runs differ: fields of their experiments, their data, and what computed them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from gpt3jax.run_dir import Run, read_events
from gpt3jax.train.run_setup import differences

NOT_COMPARED = (
    "name", "event", "time", "step", "sequences", "why", "trainable", "parameters", "epochs",
    "experiment",
)  # fmt: skip
"""Fields of an experiment and of the start of a session that say nothing, or follow from others."""


def what_differs(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run, its values of all that is not the same in every run, by dotted name.

    Versions and devices are those of the last session. A value that a run does not have is "–".
    """
    if len(runs) == 1:
        return [{}]
    first, *others = map(_described, runs)
    changes = [{each.name: each for each in differences(first, other)} for other in others]
    of_first = {name: each.before for change in changes for name, each in change.items()}
    values = [of_first] + [
        {name: change[name].after if name in change else of_first[name] for name in of_first}
        for change in changes
    ]
    return [{name: _text(value) for name, value in each.items()} for each in values]


def _described(run: Run) -> dict[str, Any]:
    """Everything that is compared, as a nested record."""
    sessions = [e for e in read_events(run.ledger_file) if e["event"] in ("start", "resume")]
    identity = run.identity() if run.identity_file.exists() else {}
    record = dataclasses.asdict(run.experiment())
    record |= {"data": identity.get("data"), "parent": identity.get("parent")}
    record |= sessions[-1] if sessions else {}
    return {name: value for name, value in record.items() if name not in NOT_COMPARED}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)
