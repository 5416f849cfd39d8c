"""Laws of scale, fitted to runs: how loss falls with parameters, data and compute.

    L(C) = a C^-b                       compute, as in Figure 3.1 of Brown et al. 2020
    L(N) = a N^-b                       parameters without embeddings (Kaplan et al. 2020)
    L(N, D) = E + A N^-alpha + B D^-beta        and tokens (Hoffmann et al. 2022, section 3.3)

Loss in nats/token, C in petaflop/s-days, N without embeddings, D in tokens. The runs
of the most compute are held out: what the others predict of them says what a
prediction is worth. Intervals are 95 %, by Student's t with as many degrees of freedom
as there are runs more than constants. Constants have confidence intervals. A predicted
loss has a prediction interval, which adds the noise of a single run to what is not known
of the law. Noise is taken as normal in log L and the fit as linear around its optimum: of
power laws that is exact, of the law of N and D the held-out run was inside in 94 to 96 % of
300 simulated ladders of 9 to 42 runs each, and the constants in 92 to 96 %. That the law
holds, and that the best of several runs of one budget is best by more than noise, is assumed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from gpt3jax import serde
from gpt3jax.config import Model
from gpt3jax.errors import ConfigError

COVERED = 0.95
"""Of the cases: by an interval."""
SAME = 0.9
"""Runs whose compute is within this share of another's have the same budget."""
FEWEST, FEWEST_BOTH = 3, 7
"""Runs that a power law needs, and the law of N and D, which has five constants."""

POWER_LAW = ("a", "b")
CONSTANTS = {
    "compute": POWER_LAW,
    "parameters": POWER_LAW,
    "both": ("E", "A", "B", "alpha", "beta"),
}
LOGARITHMIC = ("a", "E", "A", "B")
"""Constants that are fitted as their logarithms."""

STARTS = 3
"""Of the law of N and D, of those on a grid of its powers: so many are tried."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """What a run came to."""

    name: str
    parameters: float
    """Without embeddings."""
    tokens: float
    pf_days: float
    loss: float
    """Validation, nats/token."""


@dataclass(frozen=True)
class Law:
    """A fitted law."""

    kind: str
    """compute, parameters or both: what the loss is a function of."""
    constants: dict[str, float]
    intervals: dict[str, tuple[float, ...]]
    """Of each constant, the lower and upper end."""
    covariance: tuple[tuple[float, ...], ...]
    """Of the constants as they are fitted."""
    noise: float
    """Standard deviation of one run around the law, in log L."""
    fitted: int
    """To so many runs."""
    most_pf_days: float
    """Compute of the largest of them."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the noise."""
        return self.fitted - len(self.constants)

    def loss(self, parameters: float, tokens: float, pf_days: float) -> float:
        """Expected loss, nats/token."""
        return self.interval(parameters, tokens, pf_days, covered=0)[0]

    def interval(
        self, parameters: float, tokens: float, pf_days: float, covered: float = COVERED
    ) -> Interval:
        """The prediction interval of the loss of one more run."""
        x = [_fitted(name, value) for name, value in self.constants.items()]
        log_P, slopes_PC = _log_loss(self.kind, x, np.array([[parameters], [tokens], [pf_days]]))
        of_law = slopes_PC[0] @ np.array(self.covariance) @ slopes_PC[0]
        half = _quantile(self.freedom, covered) * math.sqrt(self.noise**2 + of_law)
        return math.exp(log_P[0] - half), math.exp(log_P[0] + half)


@dataclass(frozen=True)
class Prediction:
    """What a law says of a run that it was not fitted to."""

    name: str
    law: str
    predicted: float
    low: float
    """Lower end of the prediction interval."""
    high: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted less measured, nats/token."""
        return self.predicted - self.measured


@dataclass(frozen=True)
class Laws:
    """What runs say about scale."""

    data: str
    """Identity of the data that the losses are of."""
    laws: tuple[Law, ...]
    predictions: tuple[Prediction, ...]

    def best(self) -> Law:
        """The one to predict by: of parameters and tokens where there is one."""
        return next((law for law in self.laws if law.kind == "both"), self.laws[0])


def fit(points: Sequence[Point], data: str = "") -> Laws:
    """Fit all laws that there are runs enough for, without the largest runs.

    Args:
      points: one for each run.
      data: identity of what they were measured on.

    Raises:
      ConfigError: too few runs are left.
    """
    most = max((point.pf_days for point in points), default=0.0)
    held_out = [point for point in points if point.pf_days > SAME * most]
    rest = [point for point in points if point.pf_days <= SAME * most]
    chosen = {"compute": frontier(rest), "parameters": best_of_sizes(rest), "both": rest}
    laws = tuple(
        _fit(kind, some)
        for kind, some in chosen.items()
        if len(some) >= (FEWEST_BOTH if kind == "both" else FEWEST)
    )
    if not laws or laws[0].kind != "compute":
        raise ConfigError(
            f"a law needs {FEWEST} runs on the frontier of compute, besides the largest; of "
            f"{len(points)} runs there are {len(chosen['compute'])}. Train sizes at more budgets"
        )
    predictions = tuple(
        Prediction(each.name, law.kind, law.loss(*_at(each)), *law.interval(*_at(each)), each.loss)
        for law in laws
        for each in held_out
    )
    return Laws(data, laws, predictions)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The runs that none of about the same compute, or less, is better than; least first."""

    def is_best(one: Point) -> bool:
        cheap = [each for each in points if each.pf_days * SAME <= one.pf_days]
        return one is min(cheap, key=lambda each: each.loss)

    return sorted(filter(is_best, points), key=lambda each: each.pf_days)


def best_of_sizes(points: Sequence[Point]) -> list[Point]:
    """Of each size the run with the lowest loss."""
    best: dict[float, Point] = {}
    for point in sorted(points, key=lambda each: -each.loss):
        best[point.parameters] = point
    return sorted(best.values(), key=lambda each: each.parameters)


def _at(point: Point) -> tuple[float, float, float]:
    return point.parameters, point.tokens, point.pf_days


def _fitted(name: str, value: float) -> float:
    """A constant as it is fitted."""
    return math.log(value) if name in LOGARITHMIC else value


def _quantile(freedom: int, covered: float) -> float:
    """How many standard deviations to either side of Student's t are covered."""
    return float(stdtrit(freedom, (1 + covered) / 2))


def _log_loss(kind: str, x: Sequence[float], at_3P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L at parameters, tokens and compute [P], and its slopes by the constants [P, C].

    Each term of a law is linear in its constants, once these and it are logarithms.
    """
    one, no = np.ones(at_3P.shape[1]), np.zeros(at_3P.shape[1])
    if kind == "both":
        n_P, d_P = np.log(at_3P[:2])
        terms = [[one, no, no, no, no], [no, one, no, -n_P, no], [no, no, one, no, -d_P]]
    else:
        terms = [[one, -np.log(at_3P[2 if kind == "compute" else 0])]]
    terms_KPC = np.array(terms).transpose(0, 2, 1)
    log_KP = terms_KPC @ np.asarray(x)
    log_P = np.logaddexp.reduce(log_KP)
    return log_P, np.einsum("kp,kpc->pc", np.exp(log_KP - log_P), terms_KPC)


def _fit(kind: str, points: Sequence[Point]) -> Law:
    """The constants by least squares in log L, and their covariance around the optimum."""
    at_3P = np.array([_at(point) for point in points]).T
    loss_P = np.array([point.loss for point in points])
    if kind == "both":
        x = _fit_both(at_3P, loss_P)
    else:  # The slopes of a line are the same everywhere.
        x = np.linalg.lstsq(_log_loss(kind, [0, 0], at_3P)[1], np.log(loss_P))[0]
    log_P, slopes_PC = _log_loss(kind, x, at_3P)
    freedom = len(points) - len(x)
    noise = math.sqrt(np.square(np.log(loss_P) - log_P).sum() / freedom)
    spread_CP = noise * np.linalg.pinv(slopes_PC)
    covariance = spread_CP @ spread_CP.T
    half_C = _quantile(freedom, COVERED) * np.sqrt(np.diag(covariance))

    def named(values: np.ndarray) -> dict[str, float]:
        pairs = zip(CONSTANTS[kind], map(float, values), strict=True)
        # A constant that the runs do not tell has an interval that no float64 holds.
        return {k: math.exp(min(v, 700)) if k in LOGARITHMIC else v for k, v in pairs}

    low, high = named(x - half_C), named(x + half_C)
    intervals = {name: (low[name], high[name]) for name in low}
    rows = tuple(map(tuple, covariance.tolist()))
    most = max(point.pf_days for point in points)
    return Law(kind, named(x), intervals, rows, noise, len(points), most)


def _fit_both(at_3P: np.ndarray, loss_P: np.ndarray) -> np.ndarray:
    """The five constants by least squares in log L, from the best of many starts.

    Hoffmann et al. take Huber's loss, for outliers. Among a few dozen runs of one's own an
    outlier is to be looked at; and with it intervals held planted losses less often.
    """
    from scipy.optimize import least_squares, nnls

    n_P, d_P = np.log(at_3P[:2])

    def residuals(x: np.ndarray) -> np.ndarray:
        return _log_loss("both", x, at_3P)[0] - np.log(loss_P)

    def begin(alpha: float, beta: float) -> np.ndarray:
        """With these powers the rest is linear."""
        columns = np.stack([np.ones_like(n_P), np.exp(-alpha * n_P), np.exp(-beta * d_P)], 1)
        scale = columns.max(0)
        parts, _ = nnls(columns / scale, loss_P)
        x = [*np.log(np.maximum(parts, 1e-3 * loss_P.min()) / scale), alpha, beta]
        return np.clip(x, low, high)

    powers = (0.1, 0.25, 0.5, 0.8)
    low, high = [-50.0, -50, -50, 0.01, 0.01], [5.0, 50, 50, 3, 3]
    starts = [begin(alpha, beta) for alpha in powers for beta in powers]
    starts.sort(key=lambda x: np.square(residuals(x)).sum())
    found = [
        least_squares(
            residuals, x, lambda x: _log_loss("both", x, at_3P)[1], (low, high), x_scale="jac"
        )
        for x in starts[:STARTS]
    ]
    return min(found, key=lambda each: each.cost).x


def matrix_parameters(model: Model) -> float:
    """Elements of the layers' matrices: parameters without embeddings, gains and biases.

    >>> matrix_parameters(Model(12, 768, 12, 64))
    84934656.0
    """
    attention = 4 * model.d_model * model.n_heads * model.d_head
    return float(model.n_layers * (attention + 2 * model.d_model * model.d_ff))


def write(laws: Laws, file: Path) -> None:
    """As JSON, for `gpt3jax plan --law`.

    Raises:
      OSError: the file cannot be written.
    """
    file.write_text(json.dumps(dataclasses.asdict(laws)) + "\n", encoding="utf-8")


def read(file: Path) -> Laws:
    """What `write` wrote.

    Raises:
      ConfigError: it is not there, or something else.
    """
    try:
        found: Laws = serde.build(Laws, serde.read(file))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--law {file} cannot be read: {error}. Name a scaling_law.json that `gpt3jax report "
            "--scaling-law` wrote"
        ) from error
    if not found.laws or not all(map(_is_whole, found.laws)):
        raise ConfigError(f"--law {file} cannot be read: a law is not whole. Fit it anew")
    return found


def _is_whole(law: Law) -> bool:
    names = CONSTANTS.get(law.kind, ())
    square = [len(names)] * len(names)
    is_fitted = law.freedom > 0 and [len(row) for row in law.covariance] == square
    are_positive = all(law.constants.get(name, 1) > 0 for name in LOGARITHMIC)
    return is_fitted and are_positive and set(law.constants) == set(names)
