"""What an experiment file says of its space, and what is refused of it in words."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from gpt3jax.errors import ConfigError
from gpt3jax.sweep.space import as_words, grid, load

RATE = 'trial.suggest_float("rate", 1e-4, 1e-1, log=True)'


def written(path, text):
    (path / "x.py").write_text(text)
    return path / "x.py"


def test_a_space_has_ranges_and_first_params(tmp_path):
    file = written(
        tmp_path,
        f'def space(trial):\n    return {{"schedule.peak-learning-rate": {RATE}}}\n'
        'def first():\n    return [{"rate": 6e-4}]\n',
    )
    space = load(file)
    assert space.ranges == {"rate": FloatDistribution(1e-4, 1e-1, log=True)}
    assert space.first == ({"rate": 6e-4},)


def test_numbers_in_overrides_round_trip():
    values = {"a.b-c": 0.1 + 0.2, "n": 3, "flag": True, "many": (1, 2), "name": "x y"}
    words = as_words(values, "x.py")
    assert words == ["--a.b-c", repr(0.1 + 0.2), "--n", "3", "--flag", "True", "--many", "1", "2",
                     "--name", "x y"]  # fmt: skip
    assert float(words[1]) == 0.1 + 0.2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no function space"),
        ("def space(trial):\n    return {}", "suggests nothing"),
        (f"def space(trial):\n    return [{RATE}]", "returned list, not overrides"),
        (f'def space(trial):\n    return {{"--x": {RATE}}}', "an override '--x'"),
        (f'def space(trial):\n    return {{"run": {RATE}}}', "an override 'run'"),
        (f"def space(trial):\n    {RATE}\n    return {{3: 4}}", "an override 3"),
        ("def space(trial):\n    return 1 / 0", "x.py:2: ZeroDivisionError"),
        ('def space(trial):\n    return {"x": trial.suggest_float("x", 2, 1)}', "x.py:2: ValueErr"),
        ("def space(trial:", "x.py:1: SyntaxError"),
        (f'def space(trial):\n    return {{"x": {RATE}}}\nfirst = lambda: [{{"r": 1}}]', "'r', wh"),
        (f'def space(trial):\n    return {{"x": {RATE}}}\nfirst = lambda: [{{"rate": 1}}]', "outs"),
        (f'def space(trial):\n    return {{"x": {RATE}}}\nfirst = lambda: [1]', "contains int"),
    ],
)
def test_an_invalid_space_is_rejected(tmp_path, text, words):
    with pytest.raises(ConfigError) as refusal:
        load(written(tmp_path, text))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_grid_contains_both_ends_of_each_range_and_every_choice():
    ranges = {
        "rate": FloatDistribution(1e-4, 1e-1, log=True),
        "layers": IntDistribution(2, 8, step=2),
        "kind": CategoricalDistribution(("a", "b")),
    }
    points = grid(ranges, 20)
    assert len(points) == 18 and len({tuple(p.values()) for p in points}) == 18
    assert sorted({p["rate"] for p in points}) == pytest.approx([1e-4, 10**-2.5, 1e-1])
    assert {p["layers"] for p in points} == {2, 6, 8} or {p["layers"] for p in points} == {2, 4, 8}
    assert all(isinstance(p["layers"], int) for p in points)
    assert {p["kind"] for p in points} == {"a", "b"}
    assert [p["rate"] for p in grid({"rate": ranges["rate"]}, 1)] == pytest.approx([10**-2.5])
    with pytest.raises(ConfigError, match="a grid of 2"):
        grid(ranges, 1)
