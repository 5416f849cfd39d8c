"""The demo at a constant rate after the warm-up: the trunk from which cooldowns branch.

Data       that of the demo
Command    gpt3jax train experiments/constant.py
           gpt3jax train experiments/cooldown.py
Cost       that of the demo, and a fifth of what each cooldown's model has seen

WSD (warm-up, stable, decay; arXiv 2404.06395) needs no length in advance: any checkpoint of
this run becomes a finished model by a short decay of the rate (cooldown.py), so that models
of several lengths cost one long run and a fifth.
"""

import dataclasses

import tiny

from gpt3jax.config import Experiment


def experiment() -> Experiment:
    base = tiny.experiment()
    return dataclasses.replace(
        base,
        name="constant",
        schedule=dataclasses.replace(base.schedule, decay_fraction=0.0),
        train=dataclasses.replace(base.train, save_every=111, keep=9),
    )
