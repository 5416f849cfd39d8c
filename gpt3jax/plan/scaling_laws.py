"""Scaling laws fitted to runs: validation loss as a function of parameters, data and compute.

    L(C) = a C^-b                       compute, as in Figure 3.1 of Brown et al. 2020
    L(N) = a N^-b                       parameters without embeddings (Kaplan et al. 2020)
    L(N, D) = E + A N^-alpha + B D^-beta        and tokens (Hoffmann et al. 2022, section 3.3)

Loss is in nats/token, C in petaflop/s-days, N excludes embeddings and D is in tokens. The runs with
the most compute are held out, and predicting them tests the laws.

Intervals are 95 % intervals by Student's t; the degrees of freedom are the number of runs minus
the number of constants. Constants have confidence intervals. A predicted loss has a prediction
interval, which covers both the noise of a single run and the uncertainty of the law. The noise is
assumed to be normal in log L, and the fit is linearized at the optimum, which is exact for power
laws. In 300 simulated ladders of 9 to 42 runs each, the intervals of the law of N and D covered the
held-out run in 94 to 96 % and the constants in 92 to 96 %. The intervals assume that the law holds,
and that the best run of a budget is better than the others by more than noise.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from gpt3jax import serde
from gpt3jax.config import Model
from gpt3jax.errors import ConfigError

COVERED = 0.95
"""Coverage of the intervals."""
SAME = 0.9
"""Runs have the same budget if the ratio of their compute is above this."""
FEWEST, FEWEST_BOTH = 3, 7
"""Minimum number of runs for a power law, and for the law of N and D (five constants)."""

POWER_LAW = ("a", "b")
CONSTANTS = {
    "compute": POWER_LAW,
    "parameters": POWER_LAW,
    "both": ("E", "A", "B", "alpha", "beta"),
}
LOGARITHMIC = ("a", "E", "A", "B")
"""Constants that are fitted in log space."""

STARTS = 3
"""Number of starting points to optimize for the law of N and D: the best of a grid."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """The outcome of one run."""

    name: str
    parameters: float
    """Parameters without embeddings."""
    tokens: float
    pf_days: float
    loss: float
    """Validation loss, nats/token."""


@dataclass(frozen=True)
class Law:
    """A fitted scaling law."""

    kind: str
    """Independent variables of the law: `compute`, `parameters`, or `both` (N and D)."""
    constants: dict[str, float]
    intervals: dict[str, tuple[float, ...]]
    """Lower and upper bound of each constant."""
    covariance: tuple[tuple[float, ...], ...]
    """Covariance of the constants, those in LOGARITHMIC in log space."""
    noise: float
    """Standard deviation of one run around the law, in log L."""
    fitted: int
    """Number of runs that the law was fitted to."""
    most_pf_days: float
    """Compute of the largest of these runs."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the noise estimate."""
        return self.fitted - len(self.constants)

    def loss(self, parameters: float, tokens: float, pf_days: float) -> float:
        """Expected loss, nats/token."""
        return self.interval(parameters, tokens, pf_days, coverage=0)[0]

    def interval(
        self, parameters: float, tokens: float, pf_days: float, coverage: float = COVERED
    ) -> Interval:
        """Prediction interval for the loss of one new run."""
        x = [_fitted(name, value) for name, value in self.constants.items()]
        log_P, jacobian_PC = _log_loss(self.kind, x, np.array([[parameters], [tokens], [pf_days]]))
        law_variance = jacobian_PC[0] @ np.array(self.covariance) @ jacobian_PC[0]
        half_width = _quantile(self.freedom, coverage) * math.sqrt(self.noise**2 + law_variance)
        return math.exp(log_P[0] - half_width), math.exp(log_P[0] + half_width)


@dataclass(frozen=True)
class Prediction:
    """A law's prediction for a held-out run."""

    name: str
    law: str
    predicted: float
    low: float
    """Lower bound of the prediction interval."""
    high: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted minus measured loss, nats/token."""
        return self.predicted - self.measured


@dataclass(frozen=True)
class Laws:
    """The scaling laws fitted to a set of runs."""

    data: str
    """Identity of the data on which the losses were measured."""
    laws: tuple[Law, ...]
    predictions: tuple[Prediction, ...]

    def best(self) -> Law:
        """The law to predict with: that of N and D if it was fitted, otherwise the first."""
        return next((law for law in self.laws if law.kind == "both"), self.laws[0])


def fit(points: Sequence[Point], data: str = "") -> Laws:
    """Fits every law for which there are enough runs, holding out the largest runs.

    Args:
      points: one per run.
      data: identity of the data on which the losses were measured.

    Raises:
      ConfigError: there are too few runs.
    """
    most = max((point.pf_days for point in points), default=0.0)
    held_out = [point for point in points if point.pf_days > SAME * most]
    rest = [point for point in points if point.pf_days <= SAME * most]
    chosen = {"compute": frontier(rest), "parameters": best_of_sizes(rest), "both": rest}
    laws = tuple(
        _fit(kind, subset)
        for kind, subset in chosen.items()
        if len(subset) >= (FEWEST_BOTH if kind == "both" else FEWEST)
    )
    if not laws or laws[0].kind != "compute":
        raise ConfigError(
            f"a law needs {FEWEST} runs on the compute frontier, besides the largest; of "
            f"{len(points)} runs there are {len(chosen['compute'])}. Train sizes at more budgets"
        )
    predictions = tuple(
        Prediction(each.name, law.kind, law.loss(*_at(each)), *law.interval(*_at(each)), each.loss)
        for law in laws
        for each in held_out
    )
    return Laws(data, laws, predictions)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Runs with the lowest loss among those of about the same or less compute, ascending."""

    def is_best(one: Point) -> bool:
        cheap = [each for each in points if each.pf_days * SAME <= one.pf_days]
        return one is min(cheap, key=lambda each: each.loss)

    return sorted(filter(is_best, points), key=lambda each: each.pf_days)


def best_of_sizes(points: Sequence[Point]) -> list[Point]:
    """The run with the lowest loss for each model size."""
    best: dict[float, Point] = {}
    for point in sorted(points, key=lambda each: -each.loss):
        best[point.parameters] = point
    return sorted(best.values(), key=lambda each: each.parameters)


def _at(point: Point) -> tuple[float, float, float]:
    return point.parameters, point.tokens, point.pf_days


def _fitted(name: str, value: float) -> float:
    """The fitted parameter for a constant: its logarithm if it is in LOGARITHMIC."""
    return math.log(value) if name in LOGARITHMIC else value


def _quantile(freedom: int, coverage: float) -> float:
    """Half-width of the central interval of Student's t, in standard deviations."""
    return float(stdtrit(freedom, (1 + coverage) / 2))


def _log_loss(kind: str, x: ArrayLike, at_3P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log L [P] at parameters, tokens and compute [3, P], and its Jacobian [P, C].

    The logarithm of each term of a law is linear in the constants as they are fitted.
    Legend: P points, C constants, K terms of the law.
    """
    one, zero = np.ones(at_3P.shape[1]), np.zeros(at_3P.shape[1])
    if kind == "both":
        n_P, d_P = np.log(at_3P[:2])
        terms = [
            [one, zero, zero, zero, zero],
            [zero, one, zero, -n_P, zero],
            [zero, zero, one, zero, -d_P],
        ]
    else:
        terms = [[one, -np.log(at_3P[2 if kind == "compute" else 0])]]
    terms_KPC = np.array(terms).transpose(0, 2, 1)
    log_KP = terms_KPC @ np.asarray(x)
    log_P = np.logaddexp.reduce(log_KP)
    return log_P, np.einsum("kp,kpc->pc", np.exp(log_KP - log_P), terms_KPC)


def _fit(kind: str, points: Sequence[Point]) -> Law:
    """Fits the constants by least squares in log L, with their covariance at the optimum."""
    at_3P = np.array([_at(point) for point in points]).T
    loss_P = np.array([point.loss for point in points])
    if kind == "both":
        x = _fit_both(at_3P, loss_P)
    else:  # The problem is linear, so its Jacobian may be evaluated anywhere.
        x = np.linalg.lstsq(_log_loss(kind, [0, 0], at_3P)[1], np.log(loss_P))[0]
    log_P, jacobian_PC = _log_loss(kind, x, at_3P)
    freedom = len(points) - len(x)
    noise = math.sqrt(np.square(np.log(loss_P) - log_P).sum() / freedom)
    spread_CP = noise * np.linalg.pinv(jacobian_PC)
    covariance = spread_CP @ spread_CP.T
    half_C = _quantile(freedom, COVERED) * np.sqrt(np.diag(covariance))

    def named(values: np.ndarray) -> dict[str, float]:
        pairs = zip(CONSTANTS[kind], map(float, values), strict=True)
        # The interval of a constant that the runs do not determine would overflow float64.
        return {k: math.exp(min(v, 700)) if k in LOGARITHMIC else v for k, v in pairs}

    low, high = named(x - half_C), named(x + half_C)
    intervals = {name: (low[name], high[name]) for name in low}
    rows = tuple(map(tuple, covariance.tolist()))
    most = max(point.pf_days for point in points)
    return Law(kind, named(x), intervals, rows, noise, len(points), most)


def _fit_both(at_3P: np.ndarray, loss_P: np.ndarray) -> np.ndarray:
    """Fits the five constants by least squares in log L from several starting points.

    Hoffmann et al. use a Huber loss to be robust to outliers. It is not used here because it
    lowered the coverage of the intervals in simulations, and with a few dozen runs an outlier
    deserves a closer inspection instead.
    """
    from scipy.optimize import least_squares, nnls

    n_P, d_P = np.log(at_3P[:2])

    def residuals(x: np.ndarray) -> np.ndarray:
        return _log_loss("both", x, at_3P)[0] - np.log(loss_P)

    # SciPy's stubs lack a callable `jac`.
    jacobian: Any = lambda x: _log_loss("both", x, at_3P)[1]  # noqa: E731

    def initialize(alpha: float, beta: float) -> np.ndarray:
        """Starting point for these exponents; given them the other constants are linear."""
        columns = np.stack([np.ones_like(n_P), np.exp(-alpha * n_P), np.exp(-beta * d_P)], 1)
        scale = columns.max(0)
        parts, _ = nnls(columns / scale, loss_P)
        x = [*np.log(np.maximum(parts, 1e-3 * loss_P.min()) / scale), alpha, beta]
        return np.clip(x, low, high)

    powers = (0.1, 0.25, 0.5, 0.8)
    low, high = [-50.0, -50, -50, 0.01, 0.01], [5.0, 50, 50, 3, 3]
    starts = [initialize(alpha, beta) for alpha in powers for beta in powers]
    starts.sort(key=lambda x: np.square(residuals(x)).sum())
    fits = [
        least_squares(residuals, x, jacobian, (low, high), x_scale="jac") for x in starts[:STARTS]
    ]
    return min(fits, key=lambda each: each.cost).x


def matrix_parameters(model: Model) -> float:
    """Elements of the layers' weight matrices, without embeddings, gains and biases.

    >>> matrix_parameters(Model(12, 768, 12, 64))
    84934656.0
    """
    attention = 4 * model.d_model * model.n_heads * model.d_head
    return float(model.n_layers * (attention + 2 * model.d_model * model.d_ff))


def write(laws: Laws, file: Path) -> None:
    """Writes the laws as JSON, for `gpt3jax plan --law`.

    Raises:
      OSError: the file cannot be written.
    """
    file.write_text(json.dumps(dataclasses.asdict(laws)) + "\n", encoding="utf-8")


def read(file: Path) -> Laws:
    """Reads a file written by `write`.

    Raises:
      ConfigError: the file does not exist or is not a valid set of laws.
    """
    try:
        laws: Laws = serde.build(Laws, serde.read(file))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--law {file} cannot be read: {error}. Name a scaling_law.json that `gpt3jax report "
            "--scaling-law` wrote"
        ) from error
    if not laws.laws or not all(map(_is_valid, laws.laws)):
        raise ConfigError(f"--law {file} cannot be read: a law is incomplete. Fit it again")
    return laws


def _is_valid(law: Law) -> bool:
    names = CONSTANTS.get(law.kind, ())
    square = [len(names)] * len(names)
    is_fitted = law.freedom > 0 and [len(row) for row in law.covariance] == square
    are_positive = all(law.constants.get(name, 1) > 0 for name in LOGARITHMIC)
    return is_fitted and are_positive and set(law.constants) == set(names)
