"""The demo with AdamW's moments stored in bfloat16, rounded to nearest.

Data       that of the demo
Command    gpt3jax train experiments/bfloat16_moments.py
Loss       not measured yet
"""

import dataclasses

import tiny

from gpt3jax.config import AdamW, Experiment


def experiment() -> Experiment:
    return dataclasses.replace(
        tiny.experiment(), name="bfloat16_moments", optimizer=AdamW(moments="bfloat16")
    )
