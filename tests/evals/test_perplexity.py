"""Perplexity against a numpy reference over the plain forward pass, on uneven data."""

import json
import math
import random

import jax
import numpy as np
import pytest
from building import changed, randomised

from gpt3jax.commands.perplexity import perplexity as command
from gpt3jax.config import Data, Mesh, Model, Source
from gpt3jax.data.loader import HeldOut, held_out
from gpt3jax.data.manifest import TOKENIZER
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.perplexity import BATCH_WINDOWS, count_words, perplexity, token_lengths
from gpt3jax.model.gpt3 import forward
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.train import train

CONTEXT = 16


def words(draw, count):
    return " ".join("".join(draw.choices("abcdeé", k=draw.randint(2, 9))) for _ in range(count))


def symbols(draw, count):
    return "".join(draw.choices("∑∂√≈ω+-*/=<>\n ", k=count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of two kinds, whose tokens differ in length."""
    path, draw = tmp_path_factory.mktemp("kinds"), random.Random(1)
    for name, text in (("words", words), ("symbols", symbols)):
        rows = [{"text": text(draw, draw.randint(5, 60))} for _ in range(400)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (path / f"{name}.jsonl").write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory):
    """Both in one folder."""
    out = tmp_path_factory.mktemp("both") / "data"
    settings = {"context": CONTEXT, "validation_fraction": 0.1, "workers": 1}
    prepare(str(folder), str(out), vocabulary=400, **settings)
    return out


@pytest.fixture(scope="module")
def sources(folder, source, tmp_path_factory):
    """A source of words with much held out, and one of symbols with little and a large share."""
    settings = {"context": CONTEXT, "workers": 1, "vocabulary": 400}
    settings["tokenizer"] = str(source / TOKENIZER)
    found = []
    for name, fraction in (("words", 0.1), ("symbols", 0.01)):
        out = tmp_path_factory.mktemp(name) / "data"
        prepare(str(folder / f"{name}.jsonl"), str(out), validation_fraction=fraction, **settings)
        found.append(Source(name, str(out), 1.0))
    return Data(tuple(found))


@pytest.fixture(scope="module")
def pairs(folder, source, tmp_path_factory):
    """Prompts of any length, of which nothing is learned."""
    path, draw = tmp_path_factory.mktemp("pairs"), random.Random(2)
    rows = [
        {"q": words(draw, draw.randint(1, 2)), "a": symbols(draw, draw.randint(1, 5))}
        for _ in range(300)
    ]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        str(path / "pairs.jsonl"), str(path / "data"), pairs=("q", "a"), context=3 * CONTEXT,
        vocabulary=400, tokenizer=str(source / TOKENIZER), validation_fraction=0.2, workers=1,
    )  # fmt: skip
    return path / "data"


def shape(context):
    return Model(
        n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=400, context=context, band=8,
        scan_layers=False, init_std=0.3,
    )  # fmt: skip


def of(path):
    return Data((Source("a", str(path)),))


def measured(model, windows, tokenizer, sizes=(1, 1, 1)):
    mesh = make_mesh(Mesh(*sizes), jax.devices()[: math.prod(sizes)])
    lengths = token_lengths(tokenizer, model.padded_vocabulary)
    with jax.set_mesh(mesh):
        return perplexity(randomised(model), model, mesh, windows, lengths)


def nats_of(model, windows):
    """-log p of every target [B, T], by the plain forward pass, all windows at once."""
    ids = np.where(windows.windows < 0, ~windows.windows, windows.windows)
    plain = jax.jit(lambda params, ids: forward(params, ids, model).logits)
    logits = plain(randomised(model), ids[:, :-1])[..., : model.vocabulary]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    nats = -np.take_along_axis(log_p, ids[:, 1:, None], -1)[..., 0]
    return np.where(windows.windows[:, 1:] >= 0, nats, 0)


def check(model, windows, tokenizer, sizes):
    """Sums over the windows, by numpy; bytes of the decoded text, no part of a manifest."""
    found, nats = measured(model, windows, tokenizer, sizes), nats_of(model, windows)
    learned = windows.windows[:, 1:] >= 0
    np.testing.assert_allclose(found.nats_by_position, nats.sum(0), rtol=2e-6, atol=1e-6)
    assert found.tokens == learned.sum() and found.windows == len(windows)
    np.testing.assert_allclose(found.per_token, nats.sum() / learned.sum(), rtol=1e-6)
    # Every token but each window's first, as one stream: no character is cut.
    text = tokenizer.decode([id_ for row in windows.windows[:, 1:] for id_ in row if id_ >= 0])
    assert "�" not in text and found.text_bytes == len(text.encode())
    expected = nats.sum() / math.log(2) / len(text.encode())
    np.testing.assert_allclose(found.bits_per_byte, expected, rtol=1e-6)
    return found


MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2)]


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("count", [11, 0])
@pytest.mark.in_ci("11-*")
def test_two_kinds_of_text_in_one_folder(source, sizes, count):
    """Eleven windows are no whole number of batches; all of them are none either."""
    windows = held_out(of(source), count, CONTEXT)
    assert len(windows) % BATCH_WINDOWS and 0 < len(windows) <= windows.available
    check(shape(CONTEXT), windows, Tokenizer.load(source / TOKENIZER), sizes)


@pytest.mark.parametrize("sizes", MESHES[::2])
def test_a_mixture_is_measured_over_the_bytes_of_its_own_windows(sources, source, sizes):
    tokenizer = Tokenizer.load(source / TOKENIZER)
    each = [held_out(of(one.path), 0, CONTEXT) for one in sources.sources]
    assert len(each[1]) < len(each[0]) / 4
    found = check(shape(CONTEXT), held_out(sources, 0, CONTEXT), tokenizer, sizes)
    assert found.windows == found.available == len(each[0]) + len(each[1])
    fewer = check(
        shape(CONTEXT), held_out(sources, 2 * len(each[1]) + 4, CONTEXT), tokenizer, sizes
    )
    assert fewer.windows == 2 * len(each[1]) + 2, "the second source has too few"


@pytest.mark.parametrize("sizes", MESHES[::2])
def test_of_pairs_every_learned_token_weighs_the_same(pairs, source, sizes):
    model, tokenizer = shape(3 * CONTEXT), Tokenizer.load(source / TOKENIZER)
    windows = held_out(of(pairs), 0, model.context)
    found, nats = check(model, windows, tokenizer, sizes), nats_of(model, windows)
    learned = (windows.windows[:, 1:] >= 0).sum(0)
    assert 0 in learned and len(set(learned)) > 3, "uneven"
    first, stop = 8, 32
    expected = nats[:, first:stop].sum() / learned[first:stop].sum()
    np.testing.assert_allclose(found.at_positions(first, stop), expected, rtol=1e-5)
    nothing = int(np.flatnonzero(learned == 0)[0])
    assert found.at_positions(nothing, nothing + 1) is None


def test_words_are_those_of_the_text_though_windows_cut_them(folder, source):
    """Counted in the documents themselves: the file that was prepared, without its cut tail."""
    tokenizer, windows = Tokenizer.load(source / TOKENIZER), held_out(of(source), 0, CONTEXT)
    stream = [*windows.windows[0], *windows.windows[1:, 1:].flat]
    text, ids = "", [int(id_) for id_ in stream[1:]]
    while tokenizer.end_of_text in ids:
        at = ids.index(tokenizer.end_of_text)
        text, ids = text + tokenizer.decode(ids[:at]) + " ", ids[at + 1 :]
    text += tokenizer.decode(ids)
    rows = [json.loads(line)["text"] for file in folder.iterdir() for line in file.open()]
    assert sum(row in text for row in rows) > 10, "whole documents are in it"
    expected = len(text.split()) + text.count("\n")
    assert count_words(windows, tokenizer) == expected
    by_window = [tokenizer.decode(row[1:].tolist()) for row in windows.windows]
    assert sum(len(text.split()) + text.count("\n") for text in by_window) > expected
    found = measured(shape(CONTEXT), windows, tokenizer)
    assert found.per_word(expected) == math.exp(found.nats / expected)


def test_words_do_not_go_on_from_one_source_to_another(sources, source):
    tokenizer = Tokenizer.load(source / TOKENIZER)
    each = [held_out(of(one.path), 0, CONTEXT) for one in sources.sources]
    both = held_out(sources, 0, CONTEXT)
    assert count_words(both, tokenizer) == sum(count_words(one, tokenizer) for one in each)
    ends = HeldOut(both.windows, np.ones(len(both), bool), len(both))
    assert count_words(ends, tokenizer) <= count_words(both, tokenizer)


@pytest.mark.usefixtures("one_device")
def test_one_model_has_one_loss_whatever_the_batch(experiment, source, tmp_path, capsys):
    """Over 11 windows, which no batch divides; `gpt3jax perplexity` measures the same bits."""
    model, losses = shape(CONTEXT), set()
    for batch in (8, 9, 15):
        small = changed(
            experiment, train={"batch_tokens": batch * CONTEXT, "steps": 1},
            evaluate={"windows": 11, "sample_tokens": 0}, data={"sources": of(source).sources},
            model={name: getattr(model, name) for name in ("n_layers", "context", "vocabulary")},
        )  # fmt: skip
        train(small, tmp_path / str(batch))
        first, last = (r for r in Run(tmp_path / str(batch)).metrics() if "val_loss" in r)
        assert first["val_windows"] == 11 and first["val_windows_available"] > 11
        losses.add((first["val_loss"], first["val_bits_per_byte"]))
    assert len(losses) == 1
    capsys.readouterr()
    command(tmp_path / "15", windows=11, json=True)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("val_loss", "val_bits_per_byte"):
        assert printed[name] == last[name]
