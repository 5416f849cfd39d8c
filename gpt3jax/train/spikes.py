"""Loss spikes: a loss far above the recent ones."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 128
"""Steps that count as recent."""
FEWEST = 32
SIGMAS = 6.0


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
