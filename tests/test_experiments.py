"""The experiments say what the paper says, and files that are wrong are refused in words."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gpt3jax.config import (
    AdamW,
    Data,
    Evaluate,
    Experiment,
    Mesh,
    Model,
    Schedule,
    Source,
    Train,
)
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import count_params
from gpt3jax.train.run_setup import check_decay_ends
from gpt3jax.train.state import init_state
from gpt3jax.train.step import train_step
from gpt3jax.user_code import load_experiment, load_module

FOLDER = Path(__file__).parents[1] / "experiments"
WHOLE = sorted(f for f in FOLDER.glob("*.py") if "def experiment()" in f.read_text())
TUNED = [file for file in WHOLE if file.stem.startswith("finetune")]
"""These begin from runs, which must be there."""
FILES = [file for file in WHOLE if file not in TUNED]

# Table 2.1: layers, width, heads, head width, batch tokens, learning rate; then our exact count.
# The shapes of 1b3 and 13b are those that round to Table D.1's counts.
TABLE = {
    "125m": (12, 768, 12, 64, 0.5e6, 6.0e-4, 125_226_240),
    "350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4, 355_871_744),
    "760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4, 760_300_032),
    "1b3": (24, 2048, 16, 128, 1e6, 2.0e-4, 1_315_723_264),
    "2b7": (32, 2560, 32, 80, 1e6, 1.6e-4, 2_651_553_280),
    "6b7": (32, 4096, 32, 128, 2e6, 1.2e-4, 6_658_404_352),
    "13b": (40, 5120, 40, 128, 2e6, 1.0e-4, 12_853_386_240),
    "175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4, 174_604_259_328),
}


BASES = {"finetune_react": ("describe_to_react", "data/react-pairs")}
"""Of experiments that begin elsewhere than at the tiny one: whose run, and their data."""


def of_size(size):
    return load_experiment(FOLDER / f"gpt3_{size}.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_loads_and_is_named_after_its_file(file):
    assert load_experiment(file).name == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_decays_its_learning_rate(file):
    """`train` refuses a new run that does not."""
    check_decay_ends(load_experiment(file))


@pytest.mark.parametrize("file", TUNED, ids=lambda file: file.stem)
def test_a_fine_tuning_takes_the_model_of_its_base_and_the_length_of_its_data(
    file, prepared, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name, data = BASES.get(file.stem, ("tiny", "data/words"))
    with pytest.raises(ConfigError, match=rf"{file.name}:\d+: runs/{name} is not a run"):
        load_experiment(file)
    base = load_experiment(FOLDER / f"{name}.py")
    context = base.model.context
    Path(f"runs/{name}").mkdir(parents=True)
    Path(f"runs/{name}/experiment.json").write_text(base.to_json())
    words = load_module(FOLDER / "finetune_words.py").pairs(count=500)
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in words))
    made = prepare(
        "pairs.jsonl", data, context=context, vocabulary=300, tokenizer=str(prepared),
        pairs=("prompt", "completion"), workers=1,
    )  # fmt: skip
    found = load_experiment(file)
    assert (found.name, found.init_from) == (file.stem, f"runs/{name}")
    assert dataclasses.replace(found.model, lora_rank=0) == base.model
    assert (found.model.lora_rank > 0) == ("lora" in file.stem)
    epochs = found.train.tokens / (made.train_windows * context)
    assert found.train.tokens % found.train.batch_tokens == 0 and 1 <= epochs < 20
    assert found.schedule.decay_tokens == found.train.tokens > 10 * found.schedule.warmup_tokens
    assert found.schedule.peak_learning_rate <= base.schedule.peak_learning_rate


def test_the_words_are_reversed_and_no_pair_is_twice():
    made = load_module(FOLDER / "finetune_words.py").pairs(count=1000)
    assert len({pair["prompt"] for pair in made}) == 1000
    for pair in made:
        words = pair["prompt"].removesuffix(" ->").split()
        assert pair["completion"] == "".join(f" {word}" for word in reversed(words))


@pytest.mark.parametrize("size", TABLE)
def test_each_size_is_its_row_of_table_2_1(size):
    layers, width, heads, head_width, batch, rate, parameters = TABLE[size]
    found = of_size(size)
    model = found.model
    shape = (model.n_layers, model.d_model, model.n_heads, model.d_head, model.d_ff)
    assert shape == (layers, width, heads, head_width, 4 * width)
    assert found.train.batch_tokens == pytest.approx(batch, rel=0.05)
    assert found.schedule.peak_learning_rate == rate
    assert (
        count_params(model) == parameters == load_module(FOLDER / "gpt3.py").ROWS[size].parameters
    )


def test_the_table_lists_the_eight_sizes_in_the_papers_order():
    assert list(load_module(FOLDER / "gpt3.py").ROWS) == list(TABLE)


@pytest.mark.parametrize("size", TABLE)
def test_each_size_trains_as_appendix_b_says(size):
    found = of_size(size)
    schedule, train = found.schedule, found.train
    assert (schedule.warmup_tokens, schedule.decay_tokens) == (375_000_000, 260_000_000_000)
    assert schedule.final_fraction == 0.1
    assert (train.tokens, train.steps, train.ramp_from_tokens) == (300_000_000_000, None, 32_768)
    assert 4_000_000_000 <= train.ramp_tokens <= 12_000_000_000
    assert found.optimizer == AdamW(b1=0.9, b2=0.95, epsilon=1e-8, clip_norm=1.0, weight_decay=0.1)
    assert (found.model.context, found.model.vocabulary) == (2048, 50_257)
    assert (found.model.band, found.model.dense_every) == (256, 2)
    assert {source.name: source.weight for source in found.data.sources} == {
        "common_crawl": 0.60, "webtext2": 0.22, "books1": 0.08, "books2": 0.08, "wikipedia": 0.03,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "printed", "parameters"),
    [("1b3", {"n_heads": 24}, 1_517_123_584), ("13b", {"d_model": 5140}, 12_936_488_380)],
)
def test_the_shapes_that_the_paper_prints_run_when_the_width_is_freed(size, printed, parameters):
    model = of_size(size).model
    with pytest.raises(ConfigError, match="--model.free-head-width"):
        dataclasses.replace(model, **printed)
    assert count_params(dataclasses.replace(model, **printed, free_head_width=True)) == parameters


@pytest.mark.parametrize("size", TABLE)
@pytest.mark.in_ci("125m", "175b")
def test_a_training_step_of_every_size_traces_without_allocating(size):
    experiment = of_size(size)
    before = len(jax.live_arrays())
    state = jax.eval_shape(lambda: init_state(experiment))
    windows = jax.ShapeDtypeStruct((2, 1, experiment.model.context + 1), jnp.int32)
    step = partial(train_step, experiment=experiment)
    after, metrics = jax.eval_shape(step, state, windows, jnp.int32(2), jnp.float32(1e-4))
    assert after == state
    assert metrics["loss"].shape == metrics["grad_norm"].shape == ()
    padding = experiment.model.padded_vocabulary - experiment.model.vocabulary
    held = sum(leaf.size for leaf in jax.tree.leaves(after.params))
    assert held - padding * experiment.model.d_model == TABLE[size][-1]
    assert len(jax.live_arrays()) <= before + 2, "the two scalars"


def test_transfer_runs_nothing_twice_and_finds_by_how_much_best_rates_moved(
    tmp_path, monkeypatch, capsys
):
    script, asked = load_module(FOLDER / "transfer.py"), []

    def losses(width, mup, points, data):
        """Parabolas: with muP the best rate is at one place, without at the root of the width."""
        best = -8.25 if mup else -5.0 - math.log2(width) / 2
        for rate, seed in points:
            asked.append((width, mup, rate, seed))
            yield 4 + (math.log2(rate) - best) ** 2 + (seed - 0.5) / 9

    monkeypatch.setattr(script, "losses", losses)
    file = tmp_path / "losses.jsonl"
    script.fill(file, "data")
    lines = file.read_text().splitlines(keepends=True)
    assert len(asked) == len(set(asked)) == len(lines) == 7 * 2 * len(script.RATES)
    file.write_text("".join(lines[:40] + lines[41:]))
    found = script.fill(file, "data")
    assert len(asked) == len(lines) + 1 and asked[-1] == asked[40]
    assert script.best(script.curve(found, True, 256)) == pytest.approx((2**-8.25, 4))
    script.draw(found, tmp_path / "transfer.png")
    said = capsys.readouterr().out
    # The base's width has the standard curve, whose best rate is 2^-8.5.
    assert "standard: moves by 2.83x" in said and "muP: moves by 1.19x" in said
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_the_config_has_these_fields_and_no_others():
    """At most 79: a new one is a deliberate act, and is written here."""
    expected = {
        Model: "n_layers d_model n_heads d_head vocabulary context band dense_every "
        "free_head_width activation init_std dtype scan_layers remat lora_rank lora_matrices "
        "lora_alpha mup_base",
        Source: "name path weight",
        Data: "sources",
        AdamW: "b1 b2 epsilon clip_norm weight_decay moments",
        Schedule: "peak_learning_rate warmup_tokens decay_tokens final_fraction decay "
        "decay_fraction",
        Train: "batch_tokens tokens steps ramp_from_tokens ramp_tokens microbatch log_every "
        "save_every keep only noise_scale patience",
        Mesh: "data fsdp tensor",
        Evaluate: "every windows prompt sample_tokens tasks shots examples",
        Experiment: "name model data schedule train optimizer mesh evaluate seed init_from inherit",
    }
    found = {kind: [f.name for f in dataclasses.fields(kind)] for kind in expected}
    assert found == {kind: names.split() for kind, names in expected.items()}
    assert sum(map(len, found.values())) <= 79


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_json_gives_the_experiment_back(file):
    experiment = load_experiment(file)
    assert Experiment.from_json(experiment.to_json()) == experiment


def damaged(change):
    values = json.loads(of_size("125m").to_json())
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        damaged(lambda e: e.pop("model")),
        damaged(lambda e: e["model"].pop("n_layers")),
        damaged(lambda e: e["model"].update(n_layers="twelve")),
        damaged(lambda e: e["model"].update(n_layers=0)),
        damaged(lambda e: e["model"].update(n_wheels=4)),
        damaged(lambda e: e.update(model=None)),
        damaged(lambda e: e.update(seed="0")),
        damaged(lambda e: e["data"].update(sources=None)),
        damaged(lambda e: e["train"].update(batch_tokens=None)),
    ],
)
def test_a_damaged_experiment_json_is_refused(text):
    with pytest.raises(ConfigError):
        Experiment.from_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef experiment(:\n", r"wrong\.py:2: SyntaxError"),
        ("x = 1\n\nraise ValueError('no')\n", r"wrong\.py:3: ValueError: no"),
        ("import no_such_module_anywhere\n", r"wrong\.py:1: ModuleNotFoundError"),
        ("x = 1\n", r"wrong\.py has no function experiment"),
        ("experiment = 3\n", r"wrong\.py has no function experiment"),
        ("def experiment():\n    return 3\n", r"wrong\.py: experiment\(\) returned int"),
        ("def experiment():\n    pass\n", r"wrong\.py: experiment\(\) returned NoneType"),
    ],
)
def test_a_wrong_experiment_file_is_refused_by_name_and_line(tmp_path, text, said):
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_experiment(tmp_path / "wrong.py")


def test_a_mistake_inside_experiment_is_refused_by_name_and_line(tmp_path):
    text = "from gpt3jax.config import Model\ndef experiment():\n    return Model(n_layer=1)\n"
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.py:3: TypeError: .*n_layer"):
        load_experiment(tmp_path / "wrong.py")


def test_a_syntax_error_in_an_imported_file_is_placed_there(tmp_path):
    (tmp_path / "broken_neighbour.py").write_text("\n\n\n\nx = (\n")
    (tmp_path / "wrong.py").write_text("import broken_neighbour\n")
    with pytest.raises(ConfigError, match=r"wrong\.py:1: |broken_neighbour\.py:5: "):
        load_experiment(tmp_path / "wrong.py")


@pytest.mark.parametrize("name", ["dtype", "remat", "activation"])
def test_a_choice_that_does_not_exist_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(of_size("125m").model, **{name: "fastest"})


def test_an_experiment_file_may_postpone_its_annotations(tmp_path):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Row:\n    width: int\n"
    (tmp_path / "postponed.py").write_text(text)
    assert load_module(tmp_path / "postponed.py").Row(3).width == 3


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no experiment file .*none.py"):
        load_experiment(tmp_path / "none.py")


def test_runs_from_before_there_were_two_activations_are_the_same_runs():
    experiment = of_size("125m")
    assert "activation" not in experiment.identity()["model"]
    exact = dataclasses.replace(experiment.model, activation="gelu")
    other = dataclasses.replace(experiment, model=exact)
    assert other.identity()["model"]["activation"] == "gelu"
