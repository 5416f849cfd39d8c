"""A learning rate sweep of a shorter tiny experiment, from 1e-4 to 1e-1.

Data       the standard library of the running Python: gpt3jax data prepare
           --corpus python-library --out data/python-library
Command    gpt3jax sweep experiments/sweep_learning_rate.py --trials 20 --workers 2
Source     Table 2.1 of Brown et al. 2020 has 6.0e-4 for the smallest size, 125M, and lower rates
           for larger models, so the best rate for 100,000 parameters should be higher
Result     best of 20 rates: 3.4e-3 with 5.956 nats/token; the paper's 6e-4: 6.652 (seed 0, TPE)
Cost       0.24 worker-hours, each worker one CPU core
"""

import dataclasses

from tiny import experiment as tiny

from gpt3jax.config import Experiment, Schedule

TOKENS = 200_000
PAPER = 6.0e-4


def experiment() -> Experiment:
    base = tiny()
    return dataclasses.replace(
        base,
        name="sweep_learning_rate",
        model=dataclasses.replace(base.model, n_layers=2, d_model=64, n_heads=2),
        schedule=Schedule(PAPER, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=dataclasses.replace(base.train, tokens=TOKENS, log_every=10, save_every=50),
        evaluate=dataclasses.replace(base.evaluate, every=14, windows=32, sample_tokens=0),
    )


def space(trial):
    rate = trial.suggest_float("peak_learning_rate", 1e-4, 1e-1, log=True)
    return {"schedule.peak-learning-rate": rate}


def first():
    return [{"peak_learning_rate": PAPER}]
