"""Loss spikes, a loss far above the recent ones; and divergence, a loss worse than guessing."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

WINDOW = 128
"""Steps that count as recent."""
FEWEST = 32
SIGMAS = 6.0
WORSE = 1.0
"""Nats per token."""
LASTING = 10
"""Steps in a row."""


class Spikes:
    """The losses of the recent steps that were no spikes."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def see(self, loss: float) -> dict[str, float] | None:
        """Mean and standard deviation of the recent losses (nats/token), if this one is a spike."""
        if len(self._recent) >= FEWEST:
            mean, deviation = statistics.fmean(self._recent), statistics.pstdev(self._recent)
            if loss > mean + SIGMAS * deviation:
                return {"mean": mean, "deviation": deviation}
        self._recent.append(loss)
        return None


class Divergence:
    """Whether the loss stays well above that of guessing, or of the first step if that is higher.

    Guessing every token alike has the loss ln(vocabulary), about that of a new model.
    """

    def __init__(self, vocabulary: int, logged: Iterable[dict[str, Any]] = ()) -> None:
        """`logged` are the run's records so far."""
        first = next((r["loss"] for r in logged if r.get("loss") is not None), 0.0)
        self.limit = max(math.log(vocabulary), first) + WORSE
        """Nats per token."""
        self._is_new, self._above = first == 0.0, 0

    def see(self, loss: float) -> bool:
        """Whether this loss is the one that makes it a divergence."""
        if self._is_new:
            self.limit, self._is_new = max(self.limit, loss + WORSE), False
        self._above = self._above + 1 if loss > self.limit else 0
        return self._above == LASTING
