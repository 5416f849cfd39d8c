"""The results as Markdown tables."""

from __future__ import annotations

import statistics
from typing import Any

Line = dict[str, Any]

ABOUT = ("piece", "card", "versions", "commit", "command", "at", "about")
"""Not in the table."""


def markdown(results: list[Line]) -> str:
    """One table for each piece that has results, and the card and versions of each."""
    pieces = {line["piece"]: [] for line in results}
    for line in results:
        pieces[line["piece"]].append(line)
    return "\n\n".join(_piece(name, lines) for name, lines in pieces.items())


def _piece(name: str, lines: list[Line]) -> str:
    last = lines[-1]
    about = ", ".join(f"{library} {version}" for library, version in last["versions"].items())
    head = f"**{name}**, {last['card']}, commit {last['commit']}, {last['at'][:10]}; {about}"
    keys = dict.fromkeys(key for line in lines for key in line)
    columns = [key for key in keys if key not in ABOUT]
    rows = [tuple(_cell(line.get(column)) for column in columns) for line in lines]
    table = [tuple(columns), ("---",) * len(columns), *rows]
    return "\n".join([head, "", *("| " + " | ".join(row) + " |" for row in table)])


def _cell(value: Any) -> str:
    """Text of a figure; of a list of rates the median, of an object its figures."""
    if isinstance(value, list) and value and all(isinstance(each, float) for each in value):
        return f"{statistics.median(value):,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    return "" if value is None else str(value).replace("\n", " ").replace("|", r"\|")[:200]
