"""A finished model from a checkpoint of constant.py: the rate decays to zero, over a fifth.

Data       that of the demo, from where the checkpoint stopped reading
Command    gpt3jax train experiments/cooldown.py                 (from step 666 to 831)
           gpt3jax train experiments/cooldown.py --run runs/short --init-from runs/constant@333
             --train.steps 416 --schedule.decay-tokens 851968
Cost       165 of 831 steps

The branch inherits the parameters, the moments, the step and the position in the data; only
the schedule may differ. Its decay is 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392).
"""

import dataclasses

import constant

from gpt3jax.config import Experiment

FROM, TO = 666, 831
"""Steps at which the decay begins and ends."""


def experiment() -> Experiment:
    trunk = constant.experiment()
    return dataclasses.replace(
        trunk,
        name="cooldown",
        schedule=dataclasses.replace(
            trunk.schedule,
            decay="1-sqrt",
            decay_fraction=1 - FROM / TO,
            decay_tokens=TO * trunk.train.batch_tokens,
            final_fraction=0.0,
        ),
        train=dataclasses.replace(trunk.train, steps=TO),
        init_from=f"runs/constant@{FROM}",
        inherit="state",
    )
