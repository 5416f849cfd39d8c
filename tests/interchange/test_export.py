"""A run as a folder for transformers: every weight in its place, whatever mesh saved it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from building import changed, logits_of, randomised

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import DamagedError
from gpt3jax.config import Mesh
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.interchange import certificate, export, huggingface, safetensors
from gpt3jax.interchange.certificate import CertificateError, our_logits, prompts
from gpt3jax.interchange.safetensors import read_folder
from gpt3jax.model.lora import merge_lora
from gpt3jax.run_dir import Run


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
    """As where only the lock is installed; tests/parity has them."""
    monkeypatch.setitem(sys.modules, "transformers", None)


def values_of(folder):
    return {name: tensor.read() for name, tensor in read_folder(folder).items()}


def test_every_weight_is_in_its_place_and_the_padding_is_gone(dense, make_run, tmp_path):
    run = make_run(dense)
    found = export.export(run.path, tmp_path / "out")
    params, values, model = randomised(dense.model), values_of(tmp_path / "out"), dense.model
    assert list(values) == list(huggingface.shapes("gpt2", model))
    table = np.asarray(params["token_embedding"])
    assert len(table) == 384 and values["transformer.wte.weight"].shape == (300, 32)
    np.testing.assert_array_equal(values["transformer.wte.weight"], table[:300])
    queries_DHK = np.asarray(params["layers"]["qkv"]["kernel"])[1, :, :, 0]
    np.testing.assert_array_equal(
        values["transformer.h.1.attn.c_attn.weight"][:, :32], queries_DHK.reshape(32, 32)
    )
    np.testing.assert_array_equal(
        values["transformer.ln_f.bias"], np.asarray(params["final_norm"]["bias"])
    )
    assert found.parameters == sum(each.size for each in values.values())
    assert (found.family, found.step, found.dtype) == ("gpt2", 5, "float32")


def test_a_folder_has_what_transformers_looks_for(experiment, make_run, tmp_path):
    wide = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, vocabulary=310)
    )
    run = make_run(wide)
    (run.path / "metrics.jsonl").write_text(
        '{"step": 4, "loss": 3.25, "val_loss": 3.5, "val_bits_per_byte": 1.75}\n'
        '{"step": 6, "loss": 1.0}\n'
    )
    found = export.export(run.path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md", "certificate.json", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "gpt_neo" and config["vocab_size"] == 310
    drawing = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert drawing["suppress_tokens"] == list(range(300, 310)), "ids without text"
    card = (tmp_path / "out/README.md").read_text()
    manifest = run.identity()["data"]["sources"][0]["manifest"]
    for fact in ("1,920 tokens in 5 steps", manifest, "3.2500 nats/token at step 4", found.state,
                 "1.750 bits/byte", "Licence: not stated", found.line):  # fmt: skip
        assert fact in card
    assert "1.0000" not in card, "of a later step"
    assert not list(tmp_path.glob("*.partial*"))


def test_without_transformers_the_certificate_says_so(experiment, make_run, tmp_path):
    found = export.export(make_run(experiment).path, tmp_path / "out")
    record = json.loads((tmp_path / "out/certificate.json").read_text())
    assert "not installed" in record["why_not"]
    for name in ("peer", "difference", "largest_logit", "tolerance"):
        assert record[name] is None, name
    assert found.line.startswith("certificate: not compared: transformers is not")


def test_a_peer_that_does_not_fit_into_memory_is_not_loaded(experiment, make_run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch", "transformers"):
            patch.setitem(sys.modules, name, object())
        patch.setattr(certificate, "available_bytes", lambda: 1000)
        found = export.export(make_run(experiment).path, tmp_path / "out")
    assert found.peer is None and "of memory" in found.why_not


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mesh_that_saved_leaves_no_trace(experiment, make_run, tmp_path, dtype):
    one, eight = make_run(experiment), make_run(experiment, mesh=Mesh(2, 2, 2), name="eight")
    assert len(list((eight.checkpoints / "5/params/layers.up.kernel").iterdir())) > 2
    for run in (one, eight):
        export.export(run.path, tmp_path / f"{run.path.name}-out", dtype=dtype)
    assert (tmp_path / "run-out/model.safetensors").read_bytes() == (
        tmp_path / "eight-out/model.safetensors"
    ).read_bytes()
    stored = values_of(tmp_path / "run-out")["transformer.h.0.mlp.c_fc.weight"]
    kernel = np.asarray(randomised(experiment.model)["layers"]["up"]["kernel"])[0].T
    np.testing.assert_array_equal(stored, kernel.astype(stored.dtype))
    assert str(stored.dtype) == dtype


@pytest.mark.parametrize(("dense_every", "lora_rank"), [(1, 0), (2, 0), (2, 4)])
@pytest.mark.in_ci("2-4")
def test_the_forward_pass_layer_by_layer_is_the_forward_pass(
    experiment, make_run, dense_every, lora_rank
):
    """The certificate rests on it."""
    model = dataclasses.replace(
        experiment.model, dense_every=dense_every, activation="gelu", lora_rank=lora_rank
    )
    run = make_run(dataclasses.replace(experiment, model=model), mesh=Mesh(1, 4, 2))
    tokens = prompts(model, Tokenizer.load(run.tokenizer_file))
    found = our_logits(Checkpointer(run.checkpoints).open_params(5, model), tokens, model)
    expected = logits_of(randomised(model), tokens, model)[..., : model.vocabulary]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    other = dataclasses.replace(model, activation="gelu_tanh")
    near = logits_of(randomised(model), tokens, other)[..., : model.vocabulary]
    assert np.abs(near - expected).max() > 1e-4, "the two forms of GELU are told apart"


def test_what_lora_learned_is_in_the_exported_kernels(dense, make_run, tmp_path):
    adapted = changed(dense, model={"lora_rank": 4, "lora_matrices": ("qkv", "out", "down")})
    found = export.export(make_run(adapted).path, tmp_path / "out")
    params, model = merge_lora(randomised(adapted.model), adapted.model)
    plain = randomised(model)
    values = values_of(tmp_path / "out")
    assert list(values) == list(huggingface.shapes("gpt2", model))
    assert found.parameters == sum(each.size for each in values.values())
    for name, ours in (("attn.c_proj", "out"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down")):
        stored = values[f"transformer.h.1.{name}.weight"]
        kernel = np.asarray(params["layers"][ours]["kernel"])[1].reshape(stored.shape)
        np.testing.assert_allclose(stored, kernel, rtol=1e-5, atol=1e-6)
        before = np.asarray(plain["layers"][ours]["kernel"])[1].reshape(stored.shape)
        assert (np.abs(stored - before).max() > 1e-3) == (ours != "up"), "it is there to be seen"


def test_large_models_are_cut_into_files_with_an_index(dense, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 30_000)
    run = make_run(dense)
    export.export(run.path, tmp_path / "out")
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 5 and all(file.stat().st_size < 40_000 for file in files)
    index = json.loads((tmp_path / "out" / safetensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in values_of(tmp_path / "out").values()
    )


def test_the_newest_intact_or_the_named_checkpoint_is_exported(
    experiment, make_run, tmp_path, capsys
):
    make_run(experiment, seed=1, step=3)
    run = make_run(experiment, seed=2, step=7)
    assert export.export(run.path, tmp_path / "newest").step == 7
    assert export.export(run.path, tmp_path / "named", step=3).step == 3
    with pytest.raises(ConfigError, match=r"no checkpoint of step 4. It has \[3, 7\]"):
        export.export(run.path, tmp_path / "other", step=4)
    flip(run.checkpoints / "7/params/layers.down.kernel/0.0.0")
    assert export.export(run.path, tmp_path / "whole").step == 3
    assert "warning: checkpoint 7 was skipped" in capsys.readouterr().err
    with pytest.raises(DamagedError):
        export.export(run.path, tmp_path / "damaged", step=7)
    assert not (tmp_path / "damaged").exists()


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_of_a_large_leaf_is_found_by_its_hash(experiment, make_run, monkeypatch):
    """Large files have no hash of their own; small ones are caught before (`seal.check_files`)."""
    from gpt3jax.checkpoint import manifest, partial_read

    monkeypatch.setattr(manifest, "HASHED_BYTES", 1000)
    monkeypatch.setattr(partial_read, "PART_BYTES", 5000)
    run = make_run(experiment, mesh=Mesh(2, 2, 2))
    checkpoints = Checkpointer(run.checkpoints)
    checkpoints.open_params(5, experiment.model)
    flip(run.checkpoints / "5/params/layers.down.kernel/0.1.0", 17)
    with pytest.raises(DamagedError, match="leaf params/layers/down/kernel has other values"):
        checkpoints.open_params(5, experiment.model)


def test_shapes_that_transformers_does_not_support_are_refused(dense, make_run, tmp_path):
    odd = dataclasses.replace(dense.model, n_heads=3, free_head_width=True)
    run = make_run(dataclasses.replace(dense, model=odd))
    with pytest.raises(ConfigError, match="GPT-2 and GPT-Neo have no such shape"):
        export.export(run.path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_is_not_empty_is_left_alone(experiment, make_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        export.export(make_run(experiment).path, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_nothing_is_left_of_an_export_that_fails_its_certificate(
    experiment, make_run, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise CertificateError("it does not hold")

    monkeypatch.setattr(export, "certify", refuse)
    with pytest.raises(CertificateError):
        export.export(make_run(experiment).path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_a_disk_that_is_too_small_is_reported_first(experiment, make_run, tmp_path, monkeypatch):
    run = make_run(experiment)
    usage = export.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"needs 0.06\d+ GB"):
        export.export(run.path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


LARGE = """
import json, math, sys
from pathlib import Path
import numpy as np
from gpt3jax.checkpoint.array_hash import array_hash_of_parts, as_hex
from gpt3jax.checkpoint.manifest import CheckpointManifest, Leaf
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.run_dir import Run
from gpt3jax.serde import short_hash
from gpt3jax.checkpoint.partial_read import StoredLeaf, leaf_folder

run = Run(Path(sys.argv[1]))
step, leaves = run.checkpoints / "1", {}
for path, spec in named_specs(param_specs(run.experiment().model)):
    name, shape = f"params/{path}", spec.shape
    folder = step / leaf_folder(name)
    folder.mkdir(parents=True)
    layout = {"chunks": shape, "compressor": None, "dimension_separator": ".", "dtype": "<f4",
              "fill_value": None, "filters": None, "order": "C", "shape": shape, "zarr_format": 2}
    (folder / ".zarray").write_text(json.dumps(layout))
    with (folder / ".".join("0" * len(shape))).open("wb") as file:
        file.truncate(4 * math.prod(shape))
    stored = StoredLeaf(name, folder, shape, shape, np.dtype("<f4"))
    leaves[name] = Leaf(shape, "float32", as_hex(array_hash_of_parts(stored.parts())))
CheckpointManifest(1, 8, (), short_hash(run.identity()), {"jax": "0"}, leaves).write(step)
"""
"""Gives a run a checkpoint of zeros, as files with a hole in them."""

LIMITED = r"""
import re, resource, sys
from gpt3jax import cli
limit = int(sys.argv.pop(1))
import gpt3jax.interchange.export
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
code = cli.main()
# Not ru_maxrss, which begins with that of the process that started this one.
print("peak", 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]))
sys.exit(code)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does")
@pytest.mark.long
def test_a_model_larger_than_the_memory_is_exported(experiment, make_run, tmp_path):
    """The process may have 0.8 GB, its code and threads included; the weights are 1.2 GB."""
    model = dataclasses.replace(experiment.model, d_model=1024, n_heads=8, d_head=128, n_layers=24)
    run = Run(tmp_path / "run")
    small = make_run(experiment)
    experiment = dataclasses.replace(experiment, model=model)
    identity = {**experiment.identity(), "data": small.identity()["data"]}
    run.identity_file.write_text(json.dumps(identity))
    run.experiment_file.write_text(experiment.to_json())
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[2])}

    def python(code, *words):
        words = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    python(LARGE, run.path)
    limit = 800 << 20
    out = python(
        LIMITED, limit, "export", run.path, "--to", "huggingface", "--out", tmp_path / "out",
        "--dtype", "bfloat16", "--step", 1,
    )  # fmt: skip
    weights = 4 * sum(np.prod(shape) for shape in huggingface.shapes("gpt_neo", model).values())
    assert weights > 1.2e9 > limit
    assert int(out.split("peak ")[1]) < limit, "what was resident"
    assert (tmp_path / "out/model.safetensors").stat().st_size > weights / 2
