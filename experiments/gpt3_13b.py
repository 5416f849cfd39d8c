"""GPT-3 13B: Table 2.1 of Brown et al. 2020, its batch, rate and schedules.

Cost       268 petaflop/s-days (2.31e22 FLOPs) for 300B tokens, Table D.1
Loss       at least 1.97 nats/token on the paper's data: 2.57 C^-0.048 at that compute
Command    gpt3jax train experiments/gpt3_13b.py --run runs/gpt3_13b

Not trained to completion by us. The microbatch is a starting point, not a
measured optimum; the batch-size ramp does not depend on it.
"""

from gpt3jax.config import Experiment

from gpt3 import gpt3


def experiment() -> Experiment:
    return gpt3("13b", microbatch=256, remat="full")
