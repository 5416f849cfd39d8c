"""In what runs differ: fields of their experiments, their data, and what computed them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from gpt3jax.run_dir import Run, read_events

STARTS = ("start", "resume")
NOT_COMPARED = (
    "name", "event", "time", "step", "sequences", "why", "trainable", "parameters", "epochs",
    "experiment",
)  # fmt: skip
"""Fields of an experiment and of the start of a session that say nothing, or follow from others."""


def differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run, its values of all that is not the same in every run, by dotted name.

    Versions and devices are those of the last session. A value that a run does not have is "–".
    """
    if len(runs) == 1:
        return [{}]
    every = [_described(run) for run in runs]
    names = dict.fromkeys(name for each in every for name in each)
    differing = [name for name in names if len({each.get(name, "–") for each in every}) > 1]
    return [{name: each.get(name, "–") for name in differing} for each in every]


def _described(run: Run) -> dict[str, str]:
    """Everything that is compared, as text."""
    sessions = [each for each in read_events(run.ledger_file) if each["event"] in STARTS]
    last: dict[str, Any] = sessions[-1] if sessions else {}
    record = dataclasses.asdict(run.experiment())
    identity = run.identity() if run.identity_file.exists() else {}
    record |= {"data": identity.get("data"), "parent": identity.get("parent"), **last}
    compared = {name: value for name, value in record.items() if name not in NOT_COMPARED}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in _flat(compared)
    }


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a nested record, by dotted name."""
    flat = []
    for name, value in record.items():
        is_group = isinstance(value, dict) and value
        flat += _flat(value, f"{prefix}{name}.") if is_group else [(prefix + name, value)]
    return flat
