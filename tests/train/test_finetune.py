"""Fine-tuning: what is learned of a pair, what moves, where a run begins, and that it resumes."""

import dataclasses
import hashlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, logits_of, loss_of, randomised

from gpt3jax.checkpoint.array_hash import named_leaves
from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.config import Data, Mesh, Source
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.errors import ConfigError
from gpt3jax.model.trainable import trained, trained_count
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.init_from import first_state
from gpt3jax.train.monitor import event_log
from gpt3jax.train.monitor.replay import replay
from gpt3jax.train.state import abstract_state, with_fresh_moments
from gpt3jax.train.step import compile_train_step
from gpt3jax.train.train import train

SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "context": 48}


@pytest.fixture
def model(model):
    return dataclasses.replace(model, **SHAPE)


def masked_windows(rows, context=48, seed=0):
    """Random windows in which a half, but more in some rows than in others, is not learned."""
    draw = np.random.default_rng(seed)
    windows = draw.integers(0, 300, (rows, context + 1)).astype(np.int32)
    learned = draw.random((rows, context + 1)) < np.linspace(0.1, 0.9, rows)[:, None]
    return np.where(learned, windows, ~windows)


def plain_loss(params, windows, model):
    """The mean over the learned targets, as one would write it down."""
    tokens = jnp.where(windows < 0, ~windows, windows)
    logits = logits_of(params, tokens[:, :-1], model)[..., : model.vocabulary]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    losses = -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    is_learned = windows[:, 1:] >= 0
    return (losses * is_learned).sum() / is_learned.sum()


def test_the_loss_is_the_mean_over_what_is_learned_and_nothing_else_has_a_gradient(model):
    windows, params = masked_windows(4), randomised(model)
    value_and_grad = jax.jit(jax.value_and_grad(loss_of), static_argnums=2)
    loss, gradients = value_and_grad(params, windows, model)
    plain = jax.jit(jax.value_and_grad(plain_loss), static_argnums=2)
    expected = plain(params, windows, model)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(expected[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.abs(a).max()))
    # A target that is not learned may be any token, where nothing is predicted from it.
    other = windows.copy()
    other[:, -1] = ~np.where(other[:, -1] < 0, ~other[:, -1], other[:, -1])
    again = other.copy()
    again[:, -1] = ~np.int32(7)
    assert value_and_grad(params, other, model)[0] == value_and_grad(params, again, model)[0]


def stepped(experiment, sizes, windows_MBT1, steps=2):
    """Losses and gradient norms, and the leaves of the last state, from randomised parameters."""
    mesh = make_mesh(Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
        state = with_fresh_moments(randomised(experiment.model), experiment)
        state = jax.device_put(state, shardings)
        step, found = compile_train_step(experiment, mesh), []
        for _ in range(steps):
            state, metrics = step(state, windows_MBT1, len(windows_MBT1), jnp.float32(1e-2))
            found += [float(metrics["loss"]), float(metrics["grad_norm"])]
        return found, {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


@pytest.mark.long
def test_each_learned_token_weighs_the_same_in_whichever_microbatch_it_is(experiment):
    windows = masked_windows(8)
    whole, _ = stepped(experiment, (1, 1, 1), windows[None])
    parts, _ = stepped(
        changed(experiment, train={"microbatch": 2}), (1, 1, 1), windows.reshape(4, 2, -1)
    )
    assert parts == pytest.approx(whole, rel=1e-5)
    plain = jax.jit(plain_loss, static_argnums=2)
    expected = float(plain(randomised(experiment.model), windows, experiment.model))
    assert whole[0] == pytest.approx(expected, rel=1e-6)


LORA = {"lora_rank": 3, "lora_matrices": ("qkv", "out", "up", "down"), "scan_layers": True}


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.long), (2, 2, 2)])
def test_masked_lora_training_is_that_of_one_device_on_every_mesh(experiment, sizes):
    experiment = changed(experiment, model=LORA)
    windows = masked_windows(8)[None]
    alone, one = stepped(experiment, (1, 1, 1), windows)
    found, many = stepped(experiment, sizes, windows)
    assert found[::2] == pytest.approx(alone[::2], rel=1e-6)
    assert found[1::2] == pytest.approx(alone[1::2], rel=1e-5)
    assert one.keys() == many.keys()
    for name in one:
        if "mu" in name:
            np.testing.assert_allclose(many[name], one[name], atol=1e-6, err_msg=name)


def is_same(a, b):
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("only", "lora", "moved"),
    [
        (("position_embedding",), 0, "position_embedding"),
        (("layers/qkv", "*/bias"), 0, r"layers/qkv/kernel|.*/bias"),
        ((), 3, r"layers/lora/(qkv|out|up|down)/[ab]"),
        (("layers/lora/up", "final_norm"), 3, r"layers/lora/up/[ab]|final_norm/(gain|bias)"),
    ],
)
@pytest.mark.in_ci("only1*", "only3*")
def test_only_what_is_chosen_moves_and_has_moments(experiment, only, lora, moved):
    experiment = changed(experiment, train={"only": only}, model=LORA | {"lora_rank": lora})
    before = named_leaves(randomised(experiment.model))
    _, after = stepped(experiment, (1, 1, 1), masked_windows(8)[None], steps=1)
    chosen = {name for name in before if re.fullmatch(moved, name)}
    assert set(trained(experiment)) == chosen
    for name, leaf in before.items():
        assert is_same(np.asarray(leaf), after[f"params/{name}"]) == (name not in chosen), name
    moments = {name.split("/", 3)[3] for name in after if re.search(r"/(mu|nu)/", name)}
    assert moments == chosen
    sizes = {name: np.asarray(leaf).size for name, leaf in before.items()}
    assert trained_count(experiment) == sum(sizes[name] for name in chosen)


@pytest.mark.long
def test_layers_that_are_not_chosen_keep_their_bits_and_have_no_gradient(experiment):
    every = changed(experiment, model={"n_layers": 4})
    some = changed(every, train={"only": ("layers[1:3]", "layers[-1:]/norm_1")})
    before = named_leaves(randomised(some.model))
    found, after = stepped(some, (1, 1, 1), masked_windows(8)[None], steps=2)
    whole, _ = stepped(every, (1, 1, 1), masked_windows(8)[None], steps=1)
    assert found[0] == whole[0] and found[1] < whole[1], "frozen parts are not in the norm"
    for name, leaf in before.items():
        leaf, now = np.asarray(leaf), after[f"params/{name}"]
        if not name.startswith("layers/"):
            assert is_same(leaf, now), name
            continue
        moved = [not is_same(leaf[layer], now[layer]) for layer in range(4)]
        assert moved == [False, True, True, name.startswith("layers/norm_1/")], name
        assert not after[f"optimizer/1/mu/{name}"][0].any()
    layer = sum(np.asarray(leaf)[0].size for name, leaf in before.items() if "layers/" in name)
    assert trained_count(some) == 2 * layer + 2 * some.model.d_model


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("layers/qvk", "'layers/qvk' matches no parameter.*Similar names: layers/qkv"),
        ("layers[2:9]", r"'layers\[2:9\]'.*\(layers are \[0:2\]\)"),
        ("layers[x]", r"'layers\[x\]' matches no"),
        ("layers/lora", "'layers/lora' matches no"),
    ],
)
def test_a_pattern_that_chooses_nothing_is_refused_with_what_is_near(experiment, pattern, said):
    with pytest.raises(ConfigError, match=said):
        trained(changed(experiment, train={"only": ("final_norm", pattern)}))


# Whole runs.


@pytest.fixture(scope="session")
def pairs(prepared, tmp_path_factory):
    """Colours that follow animals, as pairs, with the tokenizer of `prepared`."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"prompt": f"the {a} sat {b}", "completion": f" red {a}"}
        for a in ("cat", "dog", "sun", "mat", "sky")
        for b in ("on", "to", "and", "see", "ran", "red") * 10
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        str(folder / "a.jsonl"), str(folder / "data"), context=48, vocabulary=300, workers=1,
        tokenizer=str(prepared), pairs=("prompt", "completion"), validation_fraction=0.2,
    )  # fmt: skip
    return folder / "data"


@pytest.fixture
def base(experiment, one_device, tmp_path):
    """A run of four steps, of which the second and the last are saved."""
    experiment = changed(
        experiment, train={"steps": 4, "save_every": 2}, evaluate={"sample_tokens": 0}
    )
    train(experiment, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def tuned(base, pairs):
    """A fine-tuning of it, of six steps."""
    before = Run(base).experiment()
    changes = {
        "train": {"steps": 6, "save_every": 2, "batch_tokens": 4 * 48, "keep": 9},
        "evaluate": {"every": 3},
    }
    return dataclasses.replace(
        changed(before, **changes), name="tuned", data=Data((Source("pairs", str(pairs)),)),
        init_from=str(base),
    )  # fmt: skip


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def state_of(experiment, path, step):
    checkpoints = Checkpointer(Run(path).checkpoints)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    state = checkpoints.restore(step, abstract_state(experiment, mesh))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def records(path):
    names = ("step", "loss", "grad_norm", "val_loss", "base_val_loss")
    return [{n: record[n] for n in names if n in record} for record in Run(path).metrics()]


@pytest.mark.long
def test_a_fine_tuned_run_resumes_bit_for_bit_and_does_not_write_to_its_parent(
    base, tuned, tmp_path
):
    untouched = files(base)
    train(tuned, tmp_path / "whole")
    assert files(base) == untouched
    manifest = Checkpointer(base / "checkpoints").manifest(4)
    parent = {"path": str(base), "step": 4, "state": manifest.state}
    assert Run(tmp_path / "whole").identity()["parent"] == parent
    start = event_log.read(Run(tmp_path / "whole").ledger_file)[0]
    assert (start["event"], start["parent"]) == ("start", parent)
    assert start["parameters"] == start["trainable"] > 0
    whole = records(tmp_path / "whole")
    base_loss = Run(base).metrics()[-1]["val_loss"]
    at_first = whole[0]["base_val_loss"]
    assert at_first == pytest.approx(base_loss, rel=1e-6), "nothing is forgotten yet"
    assert [r["step"] for r in whole if "base_val_loss" in r] == [0, 3, 6]
    assert abs(whole[-1]["base_val_loss"] - base_loss) > 1e-3
    assert whole[-1]["val_loss"] < whole[0]["val_loss"] - 0.2

    train(changed(tuned, train={"steps": 2}), tmp_path / "parts")
    train(dataclasses.replace(Run(base).experiment(), name="on"), tmp_path / "other")
    shutil.move(base, tmp_path / "gone")
    for steps in (5, 6):
        train(changed(tuned, train={"steps": steps}), tmp_path / "parts")
    a, b = (state_of(tuned, tmp_path / name, 6) for name in ("whole", "parts"))
    assert all(is_same(a[name], b[name]) for name in a)
    losses = {r["step"]: r["loss"] for r in whole[1:]}
    assert {r["step"]: r["loss"] for r in records(tmp_path / "parts")[1:]} == losses


def test_moments_begin_at_zero_and_steps_are_counted_anew(base, tuned, tmp_path, one_device):
    named = dataclasses.replace(tuned, init_from=f"{base}@2")
    train(changed(named, train={"steps": 1}), tmp_path / "run")
    run, mesh = Run(tmp_path / "run"), make_mesh(Mesh(), jax.devices()[:1])
    assert run.identity()["parent"]["step"] == 2
    with jax.set_mesh(mesh):
        state = named_leaves(first_state(run, named, mesh)[0])
    expected = state_of(Run(base).experiment(), base, 2)
    for name, leaf in state.items():
        is_param = name.startswith("params/")
        assert is_same(np.asarray(leaf), expected[name]) == is_param or not leaf.any(), name
        assert is_param or not leaf.any(), name
    found = replay(run, Checkpointer(run.checkpoints), 0, 0, 1, lambda each: make_mesh(each.mesh))
    assert found.compared >= 3 and not found.differences


def test_a_lora_run_is_complete_and_can_be_a_parent_itself(base, tuned, tmp_path, one_device):
    only = ("layers/lora", "final_norm/gain")
    lora = changed(tuned, model={"lora_rank": 4}, train={"steps": 3, "only": only})
    train(lora, tmp_path / "lora")
    start = event_log.read(Run(tmp_path / "lora").ledger_file)[0]
    width = lora.model.d_model
    assert width < start["trainable"] == start["parameters"] - trained_count(tuned) + width
    before, after = state_of(Run(base).experiment(), base, 4), state_of(lora, tmp_path / "lora", 3)
    for name, leaf in before.items():
        if name.startswith("params/"):
            assert is_same(leaf, after[name]) == (name != "params/final_norm/gain"), name
    assert records(tmp_path / "lora")[0]["base_val_loss"] == pytest.approx(
        Run(base).metrics()[-1]["val_loss"], rel=1e-6
    )
    again = dataclasses.replace(tuned, init_from=str(tmp_path / "lora"))
    train(changed(again, train={"steps": 1}), tmp_path / "again")
    last, first = records(tmp_path / "lora")[-1], records(tmp_path / "again")[0]
    assert first["val_loss"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_a_base_that_does_not_fit_is_refused_and_nothing_is_begun(
    base, tuned, prepared, corpus, tmp_path
):
    run = tmp_path / "run"
    other = tmp_path / "other"
    prepare(str(corpus), str(other), context=48, vocabulary=301, workers=1)
    foreign = dataclasses.replace(tuned, data=Data((Source("other", str(other)),)))
    for experiment, said in [
        (dataclasses.replace(tuned, init_from=str(tmp_path / "no")), "no is not a run"),
        (dataclasses.replace(tuned, init_from=f"{base}@3"), r"no checkpoint 3, only \[2, 4\]"),
        (changed(tuned, model={"d_model": 24, "d_head": 12}), "d-head is 12, but .* has 8"),
        (changed(tuned, model={"n_layers": 3}), "--model.n-layers is 3, but .* has 2"),
        (changed(tuned, model={"mup_base": (16, 4)}), r"--model.mup-base is \(16, 4\), but .* has"),
        (changed(foreign, model={"vocabulary": 301}), "--model.vocabulary is 301"),
        (changed(tuned, train={"only": ("nothing",)}), "'nothing' matches no parameter"),
    ]:
        with pytest.raises(ConfigError, match=said):
            train(experiment, run)
        assert not Run(run).exists()
    identity = json.loads((base / "identity.json").read_text())
    identity["data"]["tokenizer"] = "0" * 16
    (base / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(ConfigError, match=r"has tokenizer .* --tokenizer"):
        train(tuned, run)


def test_what_decides_a_fine_tuning_cannot_change_at_a_resume(base, tuned, tmp_path):
    run = tmp_path / "run"
    train(changed(tuned, train={"steps": 1}), run)
    for other, said in [
        (dataclasses.replace(tuned, init_from=f"{base}@2"), "init_from was"),
        (dataclasses.replace(tuned, init_from=""), "init_from was .*, now null"),
        (changed(tuned, train={"only": ("final_norm",)}), "train.only was null"),
        (changed(tuned, model={"lora_rank": 2}), "model.lora_rank was null, now 2"),
    ]:
        with pytest.raises(ConfigError, match=said):
            train(other, run)
    assert "init_from" not in Run(base).identity()
    assert "lora_rank" not in Run(base).identity()["model"], "earlier runs are still the same"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_base_whose_data_is_gone_is_said_once_and_not_measured(
    is_there, base, tuned, prepared, tmp_path, capsys
):
    text = (base / "experiment.json").read_text()
    (base / "experiment.json").write_text(text.replace(str(prepared), str(tmp_path / "none")))
    if is_there:  # But not all of it.
        shutil.copytree(prepared, tmp_path / "none")
        next((tmp_path / "none").glob("validation-*")).unlink()
    train(changed(tuned, train={"steps": 1}), tmp_path / "run")
    assert capsys.readouterr().out.count("base_val_loss is not measured: the data of") == 1
    assert not any("base_val_loss" in record for record in records(tmp_path / "run"))


def test_a_parent_that_has_changed_before_the_first_checkpoint_is_refused(
    base, tuned, tmp_path, one_device
):
    train(changed(tuned, train={"steps": 1}), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(base / "checkpoints" / "4")
    with pytest.raises(ConfigError, match="began from checkpoint 4 of .*, which is not there"):
        train(tuned, tmp_path / "run")
