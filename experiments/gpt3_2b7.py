"""GPT-3 2.7B: Table 2.1 of Brown et al. 2020, its batch, rate and schedules.

Cost       55.2 petaflop/s-days (4.77e21 FLOPs) for 300B tokens, Table D.1
Loss       at least 2.12 nats/token on the paper's data: 2.57 C^-0.048 at that compute
Command    gpt3jax train experiments/gpt3_2b7.py --run runs/gpt3_2b7

Not trained to completion by us. The microbatch is a starting point, not a
measured optimum; the batch-size ramp does not depend on it.
"""

from gpt3jax.config import Experiment

from gpt3 import gpt3


def experiment() -> Experiment:
    return gpt3("2b7", microbatch=64, remat="dots")
