"""Learning rate and batch size as pure functions of tokens seen (Appendix B).

Tokens are Python integers on the host: 300e9 overflows int32.
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from gpt3jax.config import Experiment, Schedule

Stretch = tuple[int, int]
"""Windows per batch, and the number of consecutive batches of that size."""


DECAYS = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""What is left of the way from the peak to the floor, from 1 to 0, by progress from 0 to 1."""


def learning_rate(tokens: int, schedule: Schedule) -> float:
    """Linear warm-up to the peak, constant if `decay_fraction` is below 1, decay, constant.

    `tokens` includes the step's own batch: the first step of the warm-up has a positive rate, and
    the last step of the decay has the floor.

    >>> paper = Schedule(peak_learning_rate=1.0)
    >>> [round(learning_rate(int(t), paper), 6) for t in (187.5e6, 375e6, 65e9, 260e9)]
    [0.5, 1.0, 0.869279, 0.1]
    >>> wsd = Schedule(1.0, 10, 100, final_fraction=0.0, decay="1-sqrt", decay_fraction=0.2)
    >>> [round(learning_rate(t, wsd), 6) for t in (5, 10, 80, 85, 100)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    peak, floor = schedule.peak_learning_rate, schedule.final_fraction
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    start = schedule.decay_from_tokens
    if tokens < start or schedule.decay_fraction == 0:
        return peak
    if tokens >= schedule.decay_tokens:
        return peak * floor
    progress = (tokens - start) / (schedule.decay_tokens - start)
    return peak * (floor + (1 - floor) * DECAYS[schedule.decay](progress))


def batch_windows(tokens: int, experiment: Experiment) -> int:
    """Windows in the batch after `tokens` tokens: the linear ramp, rounded to windows.

    Does not depend on the microbatch, so that a run that moves to other devices during the ramp
    reads the same batches at the same rates.
    """
    train, full = experiment.train, experiment.batch_sequences
    if tokens >= train.ramp_tokens:
        return full
    growth = (train.batch_tokens - train.ramp_from_tokens) * tokens / train.ramp_tokens
    return min(full, max(1, round((train.ramp_from_tokens + growth) / experiment.model.context)))


def stretches(experiment: Experiment, sequences: int = 0) -> Iterator[Stretch]:
    """The batch sizes from a position on, as (windows per batch, number of batches), endless."""
    context = experiment.model.context
    while (size := batch_windows(sequences * context, experiment)) < experiment.batch_sequences:

        def is_larger(batches: int, start: int = sequences, size: int = size) -> bool:
            return batch_windows((start + batches * size) * context, experiment) > size

        # By bisection, since the ramp may have very many batches.
        count = 1 + bisect_left(range(1, sys.maxsize), True, key=is_larger)
        yield size, count
        sequences += count * size
    yield experiment.batch_sequences, sys.maxsize


class Microbatches:
    """The windows of each microbatch from a position on, in reading order.

    `self[j]` is a range of global sequences. The last microbatch of a batch may be shorter.
    """

    def __init__(self, stretches: Iterable[Stretch], microbatch: int, sequences: int) -> None:
        """`microbatch` is the size of a full one; `sequences` is the number of windows before."""
        self._stretches, self._microbatch = iter(stretches), microbatch
        self._known: list[tuple[int, int, int]] = []
        """First microbatch, first sequence and batch size of each stretch."""
        self._after = 0, sequences
        self._lock = threading.Lock()

    def __getitem__(self, j: int) -> range:
        with self._lock:  # Several threads prefetch.
            while j >= self._after[0]:
                size, count = next(self._stretches)
                first, sequence = self._after
                self._known.append((first, sequence, size))
                each = -(-size // self._microbatch)
                self._after = first + count * each, sequence + count * size
            at = bisect_right(self._known, j, key=lambda stretch: stretch[0]) - 1
        first, sequence, size = self._known[at]
        batch, index = divmod(j - first, -(-size // self._microbatch))
        start, end = sequence + batch * size, sequence + (batch + 1) * size
        start += index * self._microbatch
        return range(start, min(start + self._microbatch, end))


def is_done(step: int, tokens: int, experiment: Experiment) -> bool:
    """Whether the run has reached its tokens or its steps."""
    train = experiment.train
    return tokens >= train.tokens or (train.steps is not None and step >= train.steps)


def total_tokens(experiment: Experiment) -> int:
    """Total training tokens, for the progress bar; the last batch may exceed them."""
    train, context = experiment.train, experiment.model.context
    if train.steps is None:
        return train.tokens
    return min(train.tokens, sequences_after(train.steps, experiment) * context)


def sequences_after(batches: int, experiment: Experiment, sequences: int = 0) -> int:
    """Sequences consumed after `batches` more batches from a position on."""
    for size, count in stretches(experiment, sequences):
        sequences += min(batches, count) * size
        batches -= min(batches, count)
        if batches == 0:
            break
    return sequences


def batch_range(batch: int, experiment: Experiment, sequences: int = 0) -> range:
    """The global sequences of a batch, counted from 0 at a position."""
    first = sequences_after(batch, experiment, sequences)
    return range(first, sequences_after(1, experiment, first))
