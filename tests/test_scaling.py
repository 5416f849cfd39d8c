"""Laws of scale: planted constants are found, and what was held out is predicted."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from gpt3jax.errors import ConfigError
from gpt3jax.plan import scaling_laws
from gpt3jax.plan.scaling_laws import Point, fit

PLANTED = {"E": 1.5, "A": 60.0, "B": 400.0, "alpha": 0.35, "beta": 0.4}


def planted(n, d):
    c = PLANTED
    return c["E"] + c["A"] * n ** -c["alpha"] + c["B"] * d ** -c["beta"]


def ladder(noise=0.0, budgets=6, seed=0):
    """Seven sizes at each budget, and one larger run; loss with relative noise."""
    draw, points = np.random.default_rng(seed), []
    sizes = {}
    for flops in [1e12 * 6**k for k in range(budgets)]:
        sizes[flops] = [(flops / 120) ** 0.5 * 2.0**k for k in range(-3, 4)]
    sizes[1e12 * 6 ** (budgets + 1)] = [(1e12 * 6 ** (budgets + 1) / 120) ** 0.5]
    for flops, some in sizes.items():
        for n in some:
            d = flops / 6 / n
            loss = planted(n, d) * np.exp(noise * draw.normal())
            points.append(Point(f"{n:.0f}@{flops:.0e}", n, d, flops / 8.64e19, float(loss)))
    return points


def test_the_planted_constants_lie_within_their_intervals():
    laws = fit(ladder(noise=0.002))
    law = laws.best()
    assert law.kind == "both" and law.fitted == 42
    for name, value in PLANTED.items():
        low, high = law.intervals[name]
        assert low <= value <= high, name
        assert low < law.constants[name] < high
    assert law.intervals["alpha"][1] - law.intervals["alpha"][0] < 0.15


def power_law(runs, noise, draw):
    """Runs on L = 3 C^-0.05, each of 3 times the compute of the one before."""
    pf_days = 1e-3 * 3.0 ** np.arange(runs)
    loss = 3 * pf_days**-0.05 * np.exp(noise * draw.normal(size=runs))
    return [Point(str(c), 1e4, 1e6, c, each) for c, each in zip(pf_days, loss, strict=True)]


def shares_inside(kind, truth, ladders):
    """How often the last run is inside its prediction interval, and each constant in its own."""
    predicted, constants = [], {name: [] for name in truth}
    for points in ladders:
        law = scaling_laws._fit(kind, points[:-1])
        low, high = law.interval(points[-1].parameters, points[-1].tokens, points[-1].pf_days)
        predicted.append(low <= points[-1].loss <= high)
        for name, value in truth.items():
            constants[name].append(law.intervals[name][0] <= value <= law.intervals[name][1])
    return np.mean(predicted), {name: np.mean(each) for name, each in constants.items()}


def test_intervals_of_a_power_law_are_those_of_linear_regression():
    points = power_law(12, 0.01, np.random.default_rng(3))
    law = next(each for each in fit(points).laws if each.kind == "compute")
    x, y = np.log([[p.pf_days, p.loss] for p in points[:-1]]).T
    expected, t = stats.linregress(x, y), stats.t.ppf(0.975, 9)
    assert law.freedom == 9
    half = t * expected.stderr
    assert law.constants["b"] == pytest.approx(-expected.slope)
    assert law.intervals["b"] == pytest.approx((-expected.slope - half, -expected.slope + half))
    half = t * expected.intercept_stderr
    ends = np.exp([expected.intercept - half, expected.intercept + half])
    assert law.intervals["a"] == pytest.approx(tuple(ends))
    at = np.log(points[-1].pf_days)
    line = expected.intercept + expected.slope * at
    variance = np.square(y - expected.intercept - expected.slope * x).sum() / 9
    leverage = 1 / 11 + (at - x.mean()) ** 2 / np.square(x - x.mean()).sum()
    half = t * np.sqrt(variance * (1 + leverage))
    ends = np.exp([line - half, line + half])
    assert law.interval(1e4, 1e6, points[-1].pf_days) == pytest.approx(tuple(ends))


def test_power_law_intervals_cover_95_percent_of_1000_simulations():
    draw = np.random.default_rng(0)
    ladders = [power_law(12, 0.01, draw) for _ in range(1000)]
    predicted, constants = shares_inside("compute", {"a": 3, "b": 0.05}, ladders)
    assert 0.93 <= predicted <= 0.97
    assert all(0.93 <= share <= 0.97 for share in constants.values()), constants


def test_intervals_of_the_law_of_both_cover_95_percent_of_200_simulations():
    """Within three standard deviations of the binomial distribution."""
    ladders = [ladder(0.01, budgets=4, seed=seed) for seed in range(200)]
    predicted, constants = shares_inside("both", PLANTED, ladders)
    least, most = (0.95 + side * 3 * np.sqrt(0.95 * 0.05 / 200) for side in (-1, 1))
    assert least <= predicted <= most
    assert all(least <= share <= most for share in constants.values()), constants


def test_the_law_of_parameters_and_tokens_is_the_least_squares_fit():
    """By scipy from the planted constants, on the losses that were drawn with them."""
    from scipy.optimize import curve_fit

    points = ladder(0.01)[:-1]
    law = scaling_laws._fit("both", points)
    at = np.array([[p.parameters, p.tokens] for p in points]).T
    found, covariance = curve_fit(
        lambda at, e, a, b, alpha, beta: np.log(e + a * at[0] ** -alpha + b * at[1] ** -beta),
        at, np.log([p.loss for p in points]), [*PLANTED.values()],
    )  # fmt: skip
    assert [*law.constants.values()] == pytest.approx([*found], rel=1e-3)
    scale = np.array([*[*law.constants.values()][:3], 1, 1])  # Those are logarithms.
    errors = np.sqrt(np.diag(law.covariance)) * scale
    assert [*errors] == pytest.approx([*np.sqrt(np.diag(covariance))], rel=1e-2)


def test_without_noise_the_constants_are_exact_and_so_is_the_prediction():
    laws = fit(ladder())
    assert laws.best().constants == pytest.approx(PLANTED, rel=0.02)
    by_law = {each.law: each for each in laws.predictions}
    assert abs(by_law["both"].error) < 1e-3
    # A law without a floor promises too much beyond its runs.
    assert by_law["compute"].error < -1e-2 or by_law["compute"].error > 1e-2


def test_the_power_law_of_compute_uses_only_the_frontier():
    points = [Point(str(k), 1e4 * 2**k, 1e6, 10.0**-k, 3 * (10.0**-k) ** -0.05) for k in range(6)]
    worse = [dataclasses.replace(p, name="worse", loss=p.loss + 1) for p in points]
    laws = fit([*points, *worse])
    law = next(each for each in laws.laws if each.kind == "compute")
    assert law.constants == pytest.approx({"a": 3, "b": 0.05})
    assert law.fitted == 5 and law.most_pf_days == 0.1
    held = [each for each in laws.predictions if each.law == "compute"]
    assert [each.error for each in held] == pytest.approx([0, -1])


def test_runs_of_about_the_same_compute_are_one_budget():
    points = [Point("a", 1, 1, 1.00, 4.0), Point("b", 1, 1, 1.02, 3.0), Point("c", 1, 1, 0.98, 5.0),
              Point("d", 1, 1, 4.0, 2.9), Point("e", 1, 1, 16.0, 3.1)]  # fmt: skip
    assert [point.name for point in scaling_laws.frontier(points)] == ["b", "d"]


def test_laws_round_trip_through_a_file_and_invalid_files_are_rejected(tmp_path):
    laws, file = fit(ladder(0.002), "data"), tmp_path / "x.json"
    scaling_laws.write(laws, file)
    assert scaling_laws.read(file) == laws
    damaged = file.read_text().replace('"alpha"', '"alfa"')
    for text in ("", "{}", "[1]", '{"data": "", "laws": [], "predictions": []}', damaged):
        file.write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            scaling_laws.read(file)


def test_too_few_runs_are_rejected():
    for points in ([], ladder()[:3], ladder()[:7]):
        with pytest.raises(ConfigError, match="Train sizes at more budgets"):
            fit(points)
