"""The demo with AdamW's moments stored in bfloat16, rounded to nearest.

Data       that of the demo
Command    gpt3jax train experiments/bfloat16_moments.py
Loss       2.056 bits/byte on all 140 held-out windows, mean of three seeds; AdamW with
           float32 moments 2.058, mean of three, whose own standard deviation is 0.019

No harm is seen at this size. Stochastic rounding was not tried (docs/experiments.md).
"""

import dataclasses

import tiny

from gpt3jax.config import AdamW, Experiment


def experiment() -> Experiment:
    return dataclasses.replace(
        tiny.experiment(), name="bfloat16_moments", optimizer=AdamW(moments="bfloat16")
    )
