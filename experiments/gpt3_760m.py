"""GPT-3 Large, 760M: Table 2.1 of Brown et al. 2020, its batch, rate and schedules.

Cost       15.8 petaflop/s-days (1.37e21 FLOPs) for 300B tokens, Table D.1
Loss       at least 2.25 nats/token on the paper's data: 2.57 C^-0.048 at that compute
Command    gpt3jax train experiments/gpt3_760m.py --run runs/gpt3_760m

Not trained to completion by us. The microbatch is a starting point, not a
measured optimum; the batch-size ramp does not depend on it.
"""

from gpt3jax.config import Experiment

from gpt3 import gpt3


def experiment() -> Experiment:
    return gpt3("760m", microbatch=32, remat="dots")
