"""The configuration of a run: frozen dataclasses that validate themselves on construction.

An experiment file returns one `Experiment`. Derived values are properties, never fields. An
invalid value raises `ConfigError`, with the reason and a fix, before anything is allocated.
Importing this module does not import jax.

Numbers come from Brown et al. 2020 (arXiv 2005.14165), section 2.1, Table 2.1 and Appendix B,
unless a comment says otherwise.
"""

from gpt3jax.config.data import Data, Source
from gpt3jax.config.experiment import Experiment
from gpt3jax.config.model import Activation, Dtype, Model, Remat, Weights
from gpt3jax.config.optimizer import AdamW, Muon
from gpt3jax.config.schedule import Schedule
from gpt3jax.config.train import MOST_WINDOWS, Evaluate, Mesh, Train

__all__ = [
    "MOST_WINDOWS", "Activation", "AdamW", "Data", "Dtype", "Evaluate", "Experiment", "Mesh",
    "Model", "Muon", "Remat", "Schedule", "Source", "Train", "Weights",
]  # fmt: skip
