"""Programs that run where this package is not: the same text, for any rows, on any platform."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from building import changed, logits_of

from gpt3jax import cli
from gpt3jax.checkpoint.load import load_model
from gpt3jax.config import Mesh
from gpt3jax.decoding import decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import load_generator
from gpt3jax.errors import ConfigError
from gpt3jax.interchange import certificate, stablehlo
from gpt3jax.interchange.certificate import CertificateError
from gpt3jax.interchange.safetensors import read_folder
from gpt3jax.sharding.mesh import make_mesh

# As where this package was never installed.
ALONE = (
    "import runpy, sys; sys.modules['gpt3jax'] = None; sys.argv.pop(0); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def wide(experiment):
    """Two layers, one of them banded, and ids that stand for no text."""
    return changed(experiment, model={"vocabulary": 310})


def test_alone_it_writes_what_generate_writes(wide, make_run, tmp_path):
    """Past the end of the window, too."""
    run = make_run(wide, seed=7)  # Of others the greedy text soon repeats one token.
    assert (
        cli.main(["export", str(run.path), "--to", "stablehlo", "--out", str(tmp_path / "o")]) == 0
    )
    assert sorted(os.listdir(tmp_path / "o")) == [
        "certificate.json", "decode.jax_export", "model.json", "model.safetensors",
        "prefill.jax_export", "run.py", "tokenizer.model",
    ]  # fmt: skip
    prompt = [7, 200, 33]
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "o/run.py"), "70", *map(str, prompt)],
        capture_output=True, text=True, timeout=200, cwd=tmp_path, env=away,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    generator = load_generator(run.path)
    drawn = generator.tokens(prompt, new_tokens=70, sampling=Sampling(temperature=0))
    expected = [int(token) for (token,) in drawn]
    if generator.tokenizer.end_of_text in expected:
        expected = expected[: expected.index(generator.tokenizer.end_of_text) + 1]
    assert json.loads(done.stdout) == expected
    assert len(set(expected[45:])) > 3, "the window was never full, or does not matter"
    assert generator.tokenizer.decode(expected) in done.stderr


@pytest.mark.parametrize(("dtype", "count"), [("float32", 3), ("bfloat16", 1)])
def test_batches_of_any_size_and_length_get_the_logits_of_forward(
    wide, make_run, tmp_path, dtype, count
):
    wide = changed(wide, model={"lora_rank": 2})
    run = make_run(wide)
    stablehlo.export(run.path, tmp_path / "o", dtype=dtype)
    prefill, decode = (
        jax.export.deserialize((tmp_path / f"o/{name}.jax_export").read_bytes())
        for name in stablehlo.PROGRAMS
    )
    assert prefill.platforms == decode.platforms == ("cpu", "cuda", "tpu")
    weights = {name: tensor.read() for name, tensor in read_folder(tmp_path / "o").items()}
    params = load_model(run.path, None, make_mesh(Mesh(data=1), jax.devices()[:1])).params
    texts = [[5, 9, 200, 7], [8] * 47, [299, 2]][:count]
    padded = np.array([text[:-1] + [0] * (49 - len(text)) for text in texts], np.int32)
    length = np.array([len(text) - 1 for text in texts], np.int32)
    first, cache = prefill.call(weights, padded, length)
    second, _ = decode.call(weights, cache, np.array([text[-1] for text in texts], np.int32))
    assert first.shape == second.shape == (count, 310), "as transformers, of all rows"
    tolerance = 1e-4 if dtype == "float32" else 0.3
    for row, text in enumerate(texts):
        logits = logits_of(params, np.array([text], np.int32), wide.model)[0, :, :310]
        np.testing.assert_allclose(first[row], logits[-2], atol=tolerance)
        np.testing.assert_allclose(second[row], logits[-1], atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_certificate_says_how_far_the_programs_are_from_the_run(
    wide, make_run, tmp_path, dtype, capsys
):
    words = ["export", str(make_run(wide).path), "--to", "stablehlo", "--dtype", dtype]
    assert cli.main([*words, "--out", str(tmp_path / "o")]) == 0
    found = certificate.Certificate(**json.loads((tmp_path / "o/certificate.json").read_text()))
    assert f"\n{found.line}\n" in capsys.readouterr().out
    assert found.peer.startswith("jax 0.") and found.family == "stablehlo"
    # Of two rows the last token that is read, and eight that follow; to the end of the window.
    assert found.positions == 2 * (1 + stablehlo.STEPS)
    assert 0 < found.difference <= found.tolerance < found.largest_logit / 20
    least = {"float32": 1e-7, "bfloat16": 1e-3}[dtype]
    assert found.difference > least * found.largest_logit, "it is that of the dtype"


def fails(run, tmp_path, words):
    """Its certificate does, and nothing is left of the export."""
    with pytest.raises(CertificateError, match=words):
        stablehlo.export(run.path, tmp_path / "o")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    "name", ["layers.1.qkv.kernel", "layers.0.norm_2.bias", "final_norm.gain", "position_embedding"]
)
def test_a_weight_that_is_disturbed_breaks_the_certificate(
    wide, make_run, tmp_path, monkeypatch, name
):
    tensors = stablehlo._tensors

    def disturbed(*arguments):
        for each, values in tensors(*arguments):
            if each == name:
                values = values.copy()
                values[..., :1] += 0.05
            yield each, values

    monkeypatch.setattr(stablehlo, "_tensors", disturbed)
    fails(make_run(wide), tmp_path, "the export is not valid: its logits differ by")


def test_a_decoding_program_that_is_wrong_breaks_the_certificate(
    wide, make_run, tmp_path, monkeypatch
):
    """Prefill is right, and so is the first step: what the second reads is not."""
    next_logits = decode.decode

    def forgetful(params, cache, token_B, model):
        logits_BV, longer = next_logits(params, cache, token_B, model)
        return logits_BV, longer.replace(keys=cache.keys)

    monkeypatch.setattr(decode, "decode", forgetful)
    fails(make_run(wide), tmp_path, "the export is not valid")


def test_the_certificate_gives_a_reason_if_nothing_can_be_compared(
    wide, make_run, tmp_path, monkeypatch
):
    run = make_run(wide)
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "available_bytes", lambda: 1000)
        found = stablehlo.export(run.path, tmp_path / "o")
    assert found.peer is None
    assert found.line.startswith("certificate: not compared: the programs would take 0.00")
    assert json.loads((tmp_path / "o/certificate.json").read_text())["peer"] is None


def test_it_appears_whole_or_not_at_all(wide, make_run, tmp_path, monkeypatch):
    run = make_run(wide)

    def fail(*_):
        assert list(tmp_path.glob("o.partial*")), "it is written beside"
        raise OSError("lost")

    monkeypatch.setattr(stablehlo, "programs", fail)
    with pytest.raises(OSError, match="lost"):
        stablehlo.export(run.path, tmp_path / "o")
    assert not list(tmp_path.glob("o*"))
    (tmp_path / "o").mkdir()
    (tmp_path / "o/kept").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        stablehlo.export(run.path, tmp_path / "o")
    for package in ("flatbuffers", "safetensors"):
        there = {"flatbuffers": 1, "safetensors": 1, package: None}
        monkeypatch.setattr("importlib.util.find_spec", there.get)
        with pytest.raises(ConfigError, match=rf"package {package}\. pip install"):
            stablehlo.export(run.path, tmp_path / "new")
