"""Detect loss spikes (far above recent losses) and divergence (worse than uniform guessing)."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

WINDOW = 128
"""Number of recent steps for mean and deviation."""
FEWEST = 32
"""Minimum number of recent steps."""
SIGMAS = 6.0
"""Threshold of a spike, standard deviations above the mean."""
WORSE = 1.0
"""Threshold of divergence above guessing, nats per token."""
LASTING = 10
"""Number of consecutive steps above the threshold that count as divergence."""


class Spikes:
    """Spike detector over the recent losses that are not spikes."""

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
    """Detects a loss that stays above the loss of guessing, or of the first step if higher.

    Uniform guessing has the loss ln(vocabulary), about that of an untrained model.
    """

    def __init__(self, vocabulary: int, logged: Iterable[dict[str, Any]] = ()) -> None:
        """`logged` are the run's metrics so far."""
        first = next((r["loss"] for r in logged if r.get("loss") is not None), 0.0)
        self.limit = max(math.log(vocabulary), first) + WORSE
        """Nats per token."""
        self._is_new, self._above = first == 0.0, 0

    def see(self, loss: float) -> bool:
        """Whether divergence is detected at this loss; true once per divergence."""
        if self._is_new:
            self.limit, self._is_new = max(self.limit, loss + WORSE), False
        self._above = self._above + 1 if loss > self.limit else 0
        return self._above == LASTING
