"""Folders of others as runs of ours: what comes in goes out again, and harm stays outside."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, logits_of, randomised

from gpt3jax import cli
from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import DamagedError
from gpt3jax.commands.verify import verify
from gpt3jax.config import Mesh
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.generator import load_generator
from gpt3jax.errors import ConfigError
from gpt3jax.interchange import huggingface, import_, safetensors
from gpt3jax.interchange.architecture import family_of, to_config
from gpt3jax.interchange.certificate import our_logits
from gpt3jax.interchange.export import export
from gpt3jax.interchange.safetensors import FLOATS, SINGLE, read_folder, write_folder
from gpt3jax.interchange.tokenizer_files import write_tokenizer
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.param_specs import count_params
from gpt3jax.run_dir import Run, read_events
from gpt3jax.train.train import train


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
    """As where only the lock is installed; tests/parity has them."""
    monkeypatch.setitem(os.sys.modules, "transformers", None)


@pytest.fixture
def folder(experiment, prepared, tmp_path):
    """A GPT-Neo of random weights, as somebody else would have saved it."""
    return theirs(experiment.model, prepared, tmp_path / "theirs")


def theirs(model, prepared, path, dtype="F32"):
    path.mkdir()
    family, rng = family_of(model), np.random.default_rng(0)
    shapes = huggingface.shapes(family, model)
    values = {name: np.float32(rng.normal(0.5, 0.3, shape)) for name, shape in shapes.items()}
    write_folder(path, shapes, FLOATS[dtype], values.items())
    (path / "config.json").write_text(json.dumps(to_config(model, "float32", 1)))
    write_tokenizer(path, Tokenizer.load(prepared / "tokenizer.model"), model.context)
    return path


def params_of(run):
    model = run.experiment().model
    checkpoints = Checkpointer(run.checkpoints)
    params = checkpoints.open_params(max(checkpoints.steps()), model)
    return {path: params.read(path) for path in params.leaves}


def same(ours, others):
    assert ours.keys() == others.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dense_every", [1, 2])
def test_in_out_and_in_again_keeps_every_bit(experiment, prepared, tmp_path, dtype, dense_every):
    """d_head is 8, whose root is no power of two."""
    model = dataclasses.replace(experiment.model, dense_every=dense_every)
    folder = theirs(model, prepared, tmp_path / "theirs", dtype)
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    found = import_.import_(folder, first.path)
    assert found.family == ("gpt2" if dense_every == 1 else "gpt_neo")
    export(first.path, tmp_path / "out")
    import_.import_(tmp_path / "out", second.path)
    same(params_of(first), params_of(second))
    assert first.identity() == second.identity()
    assert first.tokenizer_file.read_bytes() == second.tokenizer_file.read_bytes()
    if dense_every == 1:
        out = {name: tensor.read() for name, tensor in read_folder(tmp_path / "out").items()}
        same({n: t.read().astype(np.float32) for n, t in read_folder(folder).items()}, out)


def test_a_run_goes_out_and_comes_back_bit_for_bit(experiment, make_run, tmp_path):
    dense = changed(experiment, model={"dense_every": 1})
    run = make_run(dense)
    export(run.path, tmp_path / "out")
    import_.import_(tmp_path / "out", tmp_path / "back")
    before, after = params_of(run), params_of(Run(tmp_path / "back"))
    # Rows that pad the vocabulary stand for nothing; in a folder they are not.
    before["token_embedding"][300:] = 0
    same(before, after)


@pytest.mark.parametrize("dense_every", [1, 2])
def test_the_scales_of_mup_go_out_in_the_weights(experiment, make_run, tmp_path, dense_every):
    """In GPT-2 and GPT-Neo there are none; what comes back is a standard model."""
    scaled = changed(experiment, model={"dense_every": dense_every, "mup_base": (12, 3)})
    export(make_run(scaled).path, tmp_path / "out")
    import_.import_(tmp_path / "out", tmp_path / "back")
    back, tokens = Run(tmp_path / "back"), np.arange(80).reshape(2, 40)
    model = back.experiment().model
    assert model.mup_base is None
    found = our_logits(Checkpointer(back.checkpoints).open_params(0, model), tokens, model)
    expected = logits_of(randomised(scaled.model), tokens, scaled.model)[..., :300]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_an_imported_run_writes_and_is_verified_like_any(folder, tmp_path, capsys):
    run = Run(tmp_path / "run")
    import_.import_(folder, run.path)
    assert Checkpointer(run.checkpoints).steps() == [0]
    assert [event["event"] for event in read_events(run.ledger_file)] == ["import", "save"]
    assert verify(run.path) == 0
    assert "checkpoint 0" in capsys.readouterr().out
    generator = load_generator(run.path)
    assert len("".join(generator.text("the cat", new_tokens=9))) > 0
    table = np.asarray(params_of(run)["token_embedding"])
    wte = read_folder(folder)["transformer.wte.weight"].read()
    np.testing.assert_array_equal(table[:300], wte)
    assert not table[300:].any()


def test_an_imported_run_is_not_trained_until_it_is_told_on_what(folder, tmp_path, capsys):
    import_.import_(folder, tmp_path / "run")
    file = tmp_path / "same.py"
    stored = (tmp_path / "run/experiment.json").read_text()
    file.write_text(
        "from gpt3jax.config import Experiment\n"
        f"def experiment():\n    return Experiment.from_json({stored!r})\n"
    )
    assert cli.main(["train", str(file), "--run", str(tmp_path / "run")]) == 2
    assert "data has no sources: there is nothing to train on" in capsys.readouterr().err
    assert cli.main(["data", "show", str(tmp_path / "run")]) == 2


def test_an_imported_run_is_fine_tuned_like_any(experiment, make_run, tmp_path, one_device):
    """A trained run, out and in: the loss begins where it ended."""
    experiment = changed(experiment, model={"dense_every": 1}, evaluate={"sample_tokens": 0})
    train(experiment, tmp_path / "trained")
    export(tmp_path / "trained", tmp_path / "out")
    import_.import_(tmp_path / "out", tmp_path / "run")
    again = changed(experiment, train={"steps": 2}, schedule={"peak_learning_rate": 1e-4})
    again = dataclasses.replace(again, init_from=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds another experiment: data.sources"):
        train(again, tmp_path / "run")
    assert train(again, tmp_path / "tuned").steps_taken == 2
    losses = [record["loss"] for record in Run(tmp_path / "trained").metrics() if "loss" in record]
    first = next(r["loss"] for r in Run(tmp_path / "tuned").metrics() if "loss" in r)
    assert abs(first - losses[-1]) < 0.3 < losses[0] - first


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.long)])
def test_a_run_of_another_mesh_and_precision_is_taken_over(experiment, make_run, tmp_path, dtype):
    run = make_run(experiment, mesh=Mesh(2, 2, 2), dtype=dtype)
    found = import_.import_(run.path, tmp_path / "new")
    assert found.family == "gpt3jax"
    new = params_of(Run(tmp_path / "new"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(randomised(experiment.model)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert new[name].dtype == np.float32
        np.testing.assert_array_equal(new[name], np.float32(leaf.astype(dtype)))


def test_what_lora_learned_is_taken_over_in_the_kernels(dense, make_run, tmp_path):
    adapted = changed(dense, model={"lora_rank": 4})
    run = make_run(adapted)
    found = import_.import_(run.path, tmp_path / "new")
    assert found.model == dense.model and found.parameters == count_params(dense.model)
    expected, _ = merge_lora(randomised(adapted.model), adapted.model)
    new = params_of(Run(tmp_path / "new"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(new[name], leaf, rtol=1e-6, atol=1e-7)


def test_a_damaged_run_is_not_taken_over(experiment, make_run, tmp_path):
    run = make_run(experiment)
    file = run.checkpoints / "5/params/layers.down.kernel/0.0.0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="layers.down.kernel"):
        import_.import_(run.path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_of_older_folders_are_known(experiment, prepared, tmp_path):
    """Without a prefix, with masks beside the weights, with the head spelled out."""
    model = dataclasses.replace(experiment.model, dense_every=1)
    folder = theirs(model, prepared, tmp_path / "theirs")
    values = {name: tensor.read() for name, tensor in read_folder(folder).items()}
    old = {name.removeprefix("transformer."): v for name, v in values.items()}
    old |= {
        "h.0.attn.bias": np.ones((1, 1, 48, 48), np.float32),
        "h.0.attn.masked_bias": np.float32([-1e4]),
    }
    old["lm_head.weight"] = values["transformer.wte.weight"]
    shapes = {name: value.shape for name, value in old.items()}
    (tmp_path / "old").mkdir()
    for file in folder.iterdir():
        if file.name != SINGLE:
            shutil.copy(file, tmp_path / "old")
    write_folder(tmp_path / "old", shapes, FLOATS["F32"], old.items())
    import_.import_(folder, tmp_path / "a")
    import_.import_(tmp_path / "old", tmp_path / "b")
    same(params_of(Run(tmp_path / "a")), params_of(Run(tmp_path / "b")))


def rewritten(folder, change):
    """The same folder with other tensors."""
    values = {name: tensor.read() for name, tensor in read_folder(folder).items()}
    change(values)
    shapes = {name: value.shape for name, value in values.items()}
    write_folder(folder, shapes, FLOATS["F32"], values.items())


def put(name, value):
    return lambda folder: rewritten(folder, lambda values: values.update({name: value(values)}))


def take(name):
    return lambda folder: rewritten(folder, lambda values: values.pop(name))


def configured(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


WTE, UP = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (take(UP), "h.1.mlp.c_fc.weight is missing"),
        (take("transformer.ln_f.bias"), "ln_f.bias is missing"),
        (put(UP, lambda v: v[UP].T), "but config.json gives"),
        (put("transformer.h.9.ln_1.bias", lambda v: v[UP]), "not one of the model's"),
        (put("wte.weight", lambda v: v[WTE]), "is duplicated"),
        (put(UP, lambda v: v[UP] * np.inf), "layers/up/kernel has values that are not finite"),
        (put(UP, lambda v: v[UP] * np.nan), "not finite"),
        (put("lm_head.weight", lambda v: v[WTE] + 1), "not its token embedding"),
        (put("lm_head.weight", lambda v: v[WTE][:-1]), "but config.json gives"),
        (configured(model_type="opt"), "model_type is 'opt'"),
        (configured(vocab_size=299), "but config.json gives"),
        (configured(num_layers=3), "not one of the model's|layers of 3"),
        (lambda folder: (folder / SINGLE).unlink(), "only safetensors are read"),
        (lambda folder: (folder / SINGLE).write_bytes(b"\x80\x04."), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "cannot be imported"),
    ],
)
def test_damaged_or_inconsistent_folders_are_refused(folder, tmp_path, harm, words):
    harm(folder)
    with pytest.raises(ConfigError, match=words) as error:
        import_.import_(folder, tmp_path / "run")
    assert len(str(error.value)) < 600
    assert os.listdir(tmp_path) == ["theirs"], "nothing is left of it"


def test_weights_and_tokenizer_that_do_not_belong_together_are_refused(
    experiment, prepared, tmp_path
):
    small = dataclasses.replace(experiment.model, vocabulary=299)
    folder = theirs(small, prepared, tmp_path / "theirs")
    with pytest.raises(ConfigError, match="do not belong together"):
        import_.import_(folder, tmp_path / "run")


def test_a_run_that_is_there_is_left_alone(folder, tmp_path):
    import_.import_(folder, tmp_path / "run")
    before = Path(tmp_path / "run/ledger.jsonl").read_text()
    with pytest.raises(ConfigError, match="is not empty"):
        import_.import_(folder, tmp_path / "run")
    assert Path(tmp_path / "run/ledger.jsonl").read_text() == before


def test_the_command_line_names_the_package_that_is_missing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.sys.modules, "safetensors", None)
    assert cli.main(["import", str(folder), "--run", str(tmp_path / "run")]) == 2
    assert re.fullmatch(
        r"error: \S*model.safetensors can only be read with the package safetensors\. "
        r"pip install 'gpt3jax\[huggingface\]'\n",
        capsys.readouterr().err,
    )
    assert os.listdir(tmp_path) == ["theirs"]


def test_the_command_line_says_what_was_done(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "theirs", "--run", "runs/new"]) == 0
    assert "parameters of a gpt_neo model, 300 tokens" in capsys.readouterr().out
    words = ["export", "runs/new", "--to", "huggingface", "--out", "out", "--dtype", "bfloat16"]
    assert cli.main([*words, "--step", "0"]) == 0
    assert "certificate: not compared: transformers" in capsys.readouterr().out
    assert cli.main([*words, "--step", "7"]) == 2
    assert cli.main(words) == 2, "it is there"
    assert safetensors.read_folder(tmp_path / "out")[WTE].dtype == "BF16"
