"""GPT-3 6.7B: Table 2.1 of Brown et al. 2020, its batch, rate and schedules.

Cost       139 petaflop/s-days (1.20e22 FLOPs) for 300B tokens, Table D.1
Loss       at least 2.03 nats/token on the paper's data: 2.57 C^-0.048 at that compute
Command    gpt3jax train experiments/gpt3_6b7.py --run runs/gpt3_6b7

Not trained to completion by us. The microbatch is a starting point, not a
measured optimum; the batch-size ramp does not depend on it.
"""

from gpt3jax.config import Experiment

from gpt3 import gpt3


def experiment() -> Experiment:
    return gpt3("6b7", microbatch=128, remat="full")
