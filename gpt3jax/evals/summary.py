"""Results of an evaluation in a few numbers: scores with their error bars. No jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any


def summarise(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and number of shots, over all draws.

    `standard_error` is over examples: of the mean of one draw, were others asked.
    `draw_deviation` is the standard deviation of a draw's score over draws of
    demonstrations; absent with one draw.
    """
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for setting in settings:
        rows.setdefault((setting["task"], setting["shots"]), []).append(setting)
    return [_row(of_draw) for of_draw in rows.values()]


def _row(of_draw: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = of_draw[0]
    examples = [each for setting in of_draw for each in setting["examples"]]
    count = len(first["examples"])
    # An example's score, averaged over the draws: drawing anew is no new example.
    scores = [fmean(of_example) for of_example in zip(
        *([each["score"] for each in setting["examples"]] for setting in of_draw), strict=True
    )]  # fmt: skip
    row = {
        "task": first["task"],
        "shots": first["shots"],
        "metric": first["metric"],
        "score": fmean(scores),
        "standard_error": stdev(scores) / math.sqrt(count) if count > 1 else None,
        "chance": first["chance"],
        "examples": count,
        "draws": len(of_draw),
        "demonstrations": fmean(each["demonstrations"] for each in examples),
        "shortened": sum(each["dropped"] > 0 for each in examples),
        "cut": sum(each["cut"] > 0 for each in examples),
        "truth_nats": -fmean(_truth(each) for each in examples),
    }
    if len(of_draw) > 1:
        row["draw_deviation"] = stdev(setting["score"] for setting in of_draw)
    if first["metric"] == "choice":
        row["normalise"] = first["normalise"]
        row["by"] = {name: _accuracy(examples, name) for name in _names(examples)}
    else:
        row["greedy_match"] = fmean(
            any(c["is_likeliest"] for c in each["candidates"]) for each in examples
        )
    row["checks"] = {
        name: fmean(each["checks"][name] for each in examples)
        for name in examples[0].get("checks", {})
    }
    if "paper" in first:
        row["paper_175b"] = paper_score(first)
    return row


def paper_score(setting: dict[str, Any]) -> float | None:
    """What GPT-3 175B got with as many shots (Table H.1), 0 to 1."""
    column = {setting["few"]: 2, 0: 0, 1: 1}.get(setting["shots"])
    return None if column is None else setting["paper"][column][-1] / 100


def _truth(record: dict[str, Any]) -> float:
    """Log-likelihood of the right candidate."""
    return sum(record["candidates"][record["truth"]]["log_probabilities"])


def _names(examples: Sequence[dict[str, Any]]) -> list[str]:
    return list(examples[0]["candidates"][0]["scores"])


def _accuracy(examples: Sequence[dict[str, Any]], name: str) -> float:
    """Share of right choices, were they made by this normalisation."""
    right = 0
    for each in examples:
        by = [candidate["scores"][name] for candidate in each["candidates"]]
        right += max(range(len(by)), key=by.__getitem__) == each["truth"]
    return right / len(examples)
