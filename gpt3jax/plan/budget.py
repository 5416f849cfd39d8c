"""Compute-optimal model size and token count for a budget, by two scaling laws.

paper        L = 2.57 C^-0.048 with C in petaflop/s-days (Brown et al. 2020, Figure 3.1);
             the size is N = 1.3e9 C^0.73 without embeddings (Kaplan et al. 2020, section 6.1)
Chinchilla   L = 1.69 + 406.4 N^-0.34 + 410.7 D^-0.28 (Hoffmann et al. 2022), minimized over N
             at C = 6 N D
"""

from __future__ import annotations

from dataclasses import dataclass

PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day."""


@dataclass(frozen=True)
class Best:
    """A model size and the number of tokens to train it on."""

    law: str
    parameters: float
    tokens: float
    loss: float
    """Nats/token on the law's own corpus, so losses of different laws are not comparable."""


def best_by_paper(flops: float) -> Best:
    """The power law of Figure 3.1 of Brown et al. 2020."""
    petaflop_days = flops / PF_DAY
    parameters = 1.3e9 * petaflop_days**0.73
    return Best("paper", parameters, flops / 6 / parameters, 2.57 * petaflop_days**-0.048)


def best_by_chinchilla(flops: float) -> Best:
    """The minimum of the Chinchilla loss subject to 6 N D = C, in closed form."""
    a, b, big_a, big_b = 0.34, 0.28, 406.4, 410.7
    parameters = (a * big_a / (b * big_b)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    tokens = flops / 6 / parameters
    return Best("Chinchilla", parameters, tokens, chinchilla_loss(parameters, tokens))


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Loss in nats/token."""
    return 1.69 + 406.4 * parameters**-0.34 + 410.7 * tokens**-0.28
