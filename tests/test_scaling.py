"""Laws of scale: planted constants are found, and what was held out is predicted."""

import dataclasses

import numpy as np
import pytest

from gpt3jax import scaling
from gpt3jax.config import ConfigError
from gpt3jax.scaling import Point, fit

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


def test_without_noise_the_constants_are_exact_and_so_is_the_prediction():
    laws = fit(ladder())
    assert laws.best().constants == pytest.approx(PLANTED, rel=0.02)
    by_law = {each.law: each for each in laws.predictions}
    assert abs(by_law["both"].error) < 1e-3
    # A law without a floor promises too much beyond its runs.
    assert by_law["compute"].error < -1e-2 or by_law["compute"].error > 1e-2


def test_a_power_law_of_compute_is_found_on_the_frontier_alone():
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
    assert [point.name for point in scaling.frontier(points)] == ["b", "d"]


def test_laws_are_read_back_as_written_and_anything_else_is_refused(tmp_path):
    laws, file = fit(ladder(0.002), "data"), tmp_path / "x.json"
    scaling.write(laws, file)
    assert scaling.read(file) == laws
    damaged = file.read_text().replace('"alpha"', '"alfa"')
    for text in ("", "{}", "[1]", '{"data": "", "laws": [], "predictions": []}', damaged):
        file.write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            scaling.read(file)


def test_too_few_runs_are_refused_in_words():
    for points in ([], ladder()[:3], ladder()[:7]):
        with pytest.raises(ConfigError, match="Train sizes at more budgets"):
            fit(points)
