"""Learning rate and batch size as pure functions of tokens seen (Appendix B).

Tokens are Python integers on the host: 300e9 overflows int32.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left

from gpt3jax.config import Experiment, Schedule


def learning_rate(tokens: int, schedule: Schedule) -> float:
    """Linear warm-up to the peak, cosine to the floor, then constant.

    >>> paper = Schedule(peak_learning_rate=1.0)
    >>> [round(learning_rate(int(t), paper), 6) for t in (187.5e6, 375e6, 65e9, 260e9)]
    [0.5, 1.0, 0.869279, 0.1]
    """
    peak, floor = schedule.peak_learning_rate, schedule.final_fraction
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    if tokens >= schedule.decay_tokens:
        return peak * floor
    progress = (tokens - schedule.warmup_tokens) / (schedule.decay_tokens - schedule.warmup_tokens)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def microbatches(tokens: int, experiment: Experiment) -> int:
    """How many microbatches the next batch has: the ramp, rounded to whole ones."""
    train = experiment.train
    full = experiment.batch_sequences // experiment.microbatch
    if tokens >= train.ramp_tokens:
        return full
    growth = (train.batch_tokens - train.ramp_from_tokens) * tokens / train.ramp_tokens
    size = (train.ramp_from_tokens + growth) / (experiment.microbatch * experiment.model.context)
    return min(full, max(1, round(size)))


def is_done(step: int, tokens: int, experiment: Experiment) -> bool:
    """Whether the run has had its tokens, or its steps."""
    train = experiment.train
    return tokens >= train.tokens or (train.steps is not None and step >= train.steps)


def total_tokens(experiment: Experiment) -> int:
    """Tokens to train on, for the progress bar; the last batch may go past them."""
    train, context = experiment.train, experiment.model.context
    if train.steps is None:
        return train.tokens
    return min(train.tokens, sequences_after(train.steps, experiment) * context)


def sequences_after(batches: int, experiment: Experiment, sequences: int = 0) -> int:
    """Sequences consumed after so many more batches, from a position on."""
    context, size = experiment.model.context, experiment.microbatch
    full = experiment.batch_sequences // size

    def count_after(same: int, count: int) -> int:
        return microbatches((sequences + same * count * size) * context, experiment)

    while batches > 0:
        count = microbatches(sequences * context, experiment)
        # As many at once as are alike: the ramp may be longer than one can walk.
        alike = batches
        if count < full:
            ahead = range(1, min(batches, sys.maxsize))
            alike = 1 + bisect_left(ahead, True, key=lambda k: count_after(k, count) != count)
        sequences += alike * count * size
        batches -= alike
    return sequences


def batch_range(batch: int, experiment: Experiment) -> range:
    """The global sequences of a batch, counted from 0."""
    first = sequences_after(batch, experiment)
    return range(first, sequences_after(1, experiment, first))
