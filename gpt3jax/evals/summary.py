"""Summarise the results of an evaluation: scores with confidence intervals. No jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

from gpt3jax.serde import short_hash
from gpt3jax.style import pluralize


def summarise(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task, number of shots and protocol, averaged over draws of demonstrations.

    `interval` is over examples: see `wilson`. `draw_deviation` is the standard
    deviation of the score over draws of demonstrations; absent for a single draw.
    """
    rows: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for setting in settings:
        key = (setting["task"], setting["shots"], short_hash(setting.get("asked")))
        rows.setdefault(key, []).append(setting)
    return [_row(of_draw) for of_draw in rows.values()]


def wilson(score: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a proportion over a sample of `count` examples.

    For scores between 0 and 1 (F1, means over draws) it is conservative: given the mean, the
    variance is largest for scores of 0 and 1.
    """
    z2 = NormalDist().inv_cdf(0.975) ** 2 / count
    centre, half = score + z2 / 2, math.sqrt(z2 * (score * (1 - score) + z2 / 4))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def described(row: dict[str, Any]) -> str:
    """A description of the examples and protocol of a row; old results lack the protocol."""
    text = pluralize(row["examples"], "example")
    if row["draws"] > 1:
        text += f", {row['draws']} draws (standard deviation {100 * row['draw_deviation']:.1f})"
    if row["asked"]:
        text += f", seed {row['asked']['seed']}, {pluralize(row['asked']['beams'], 'beam')}"
        text += ", shared demonstrations" if row["asked"]["shared"] else ""
    return text


def _row(of_draw: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = of_draw[0]
    examples = [each for setting in of_draw for each in setting["examples"]]
    count = len(first["examples"])
    # An example's score is averaged over the draws, which are not independent examples.
    scores = [
        fmean(of_example)
        for of_example in zip(
            *([each["score"] for each in setting["examples"]] for setting in of_draw), strict=True
        )
    ]
    row = {
        "task": first["task"],
        "shots": first["shots"],
        "metric": first["metric"],
        "score": fmean(scores),
        "interval": wilson(fmean(scores), count),
        "chance": first["chance"],
        "examples": count,
        "draws": len(of_draw),
        "asked": first.get("asked"),
        "demonstrations": fmean(each["demonstrations"] for each in examples),
        "shortened": sum(each["dropped"] > 0 for each in examples),
        "cut": sum(each["cut"] > 0 for each in examples),
        "truth_nats": -fmean(
            sum(each["candidates"][each["truth"]]["log_probabilities"]) for each in examples
        ),
    }
    if len(of_draw) > 1:
        row["draw_deviation"] = stdev(setting["score"] for setting in of_draw)
    if first["metric"] == "choice":
        row["normalise"] = first["normalise"]
        names = examples[0]["candidates"][0]["scores"]
        row["by"] = {name: _accuracy(examples, name) for name in names}
    else:
        row["greedy_match"] = fmean(
            any(c["is_likeliest"] for c in each["candidates"]) for each in examples
        )
    row["checks"] = {
        name: fmean(each["checks"][name] for each in examples)
        for name in examples[0].get("checks", {})
    }
    if "paper" in first:
        # GPT-3 175B with as many shots, from 0 to 1.
        column = {first["few"]: 2, 0: 0, 1: 1}.get(first["shots"])
        row["paper_175b"] = None if column is None else first["paper"][column][-1] / 100
    return row


def _accuracy(examples: Sequence[dict[str, Any]], normalise: str) -> float:
    """Accuracy of the choices under a normalisation."""
    choices = []
    for each in examples:
        by = [candidate["scores"][normalise] for candidate in each["candidates"]]
        choices.append(max(range(len(by)), key=by.__getitem__))
    return fmean(choice == each["truth"] for choice, each in zip(choices, examples, strict=True))
