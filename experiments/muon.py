"""The demo with Muon for the layers' matrices, AdamW for the rest.

Data       that of the demo
Command    gpt3jax train experiments/muon.py
"""

import dataclasses

import tiny

from gpt3jax.config import Experiment, Muon


def experiment() -> Experiment:
    return dataclasses.replace(tiny.experiment(), name="muon", optimizer=Muon())
