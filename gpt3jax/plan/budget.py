"""The best model that money buys, by two laws of scale.

paper        L = 2.57 C^-0.048, C in petaflop/s-days (Fig. 3.1 of Brown et al.);
             the best size for C by Kaplan et al. 2020: N = 1.3e9 C^0.73 (their
             section 6.1), without embeddings
Chinchilla   L = 1.69 + 406.4 N^-0.34 + 410.7 D^-0.28 (Hoffmann et al. 2022); the N that
             makes it least for C = 6 N D
"""

from __future__ import annotations

from dataclasses import dataclass

PF_DAY = 8.64e19
"""FLOPs."""


@dataclass(frozen=True)
class Best:
    """A model and the tokens to train it on."""

    law: str
    parameters: float
    tokens: float
    loss: float
    """Nats/token, on the law's own corpus: the two are not comparable."""


def best_by_paper(flops: float) -> Best:
    """By the power law that Figure 3.1 shows."""
    petaflop_days = flops / PF_DAY
    parameters = 1.3e9 * petaflop_days**0.73
    return Best("paper", parameters, flops / 6 / parameters, 2.57 * petaflop_days**-0.048)


def best_by_chinchilla(flops: float) -> Best:
    """Where the derivative of the loss along 6 N D = C is zero."""
    a, b, big_a, big_b = 0.34, 0.28, 406.4, 410.7
    parameters = (a * big_a / (b * big_b)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    tokens = flops / 6 / parameters
    return Best("Chinchilla", parameters, tokens, chinchilla_loss(parameters, tokens))


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Nats/token."""
    return 1.69 + 406.4 * parameters**-0.34 + 410.7 * tokens**-0.28
