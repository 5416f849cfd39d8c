"""GPT-3 XL, 1.3B: Table 2.1 of Brown et al. 2020, its batch, rate and schedules.

Cost       27.5 petaflop/s-days (2.38e21 FLOPs) for 300B tokens, Table D.1
Loss       at least 2.19 nats/token on the paper's data: 2.57 C^-0.048 at that compute
Command    gpt3jax train experiments/gpt3_1b3.py --run runs/gpt3_1b3

Not trained to completion by us. The microbatch is a starting point, not a
measured optimum; the batch-size ramp does not depend on it.
"""

from gpt3jax.config import Experiment

from gpt3 import gpt3


def experiment() -> Experiment:
    return gpt3("1b3", microbatch=64, remat="dots")
