"""Corpora and tokenizers that are broken or strange: taken, counted or refused, never a crash."""

import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, bounds, refused, tries

from gpt3jax import cli
from gpt3jax.config import Mesh
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.run_setup import create_or_check, data_identity

STRANGE = (
    "a", "\ufeffwith a mark", "one\r\ntwo\rthree\n", "\0", "nul \0 in", "שלום עולם \u200f\u202e!",
    "\U0001f469\u200d\U0001f467\u200d\U0001f466", "e\u0301 \u1100\u1161", "\u2581 \u2585", "\x1b[J",
    "<|endoftext|>", "<0x0A>", "\u2028\u2029\x85", "\U0010ffff\ufdd0", " " * 500, "x" * 5000,
)  # fmt: skip


def documents(manifest):
    """The texts in the training windows of a manifest of context 1, which leaves none out."""
    tokenizer = Tokenizer.load(manifest.folder / "tokenizer.model")
    found, ids = [], []
    for shard in manifest.train.shards:
        reader = ArrayRecordReader(str(manifest.folder / shard.name))
        for _, token in (np.frombuffer(record, manifest.dtype) for record in reader.read_all()):
            if token == manifest.end_of_text:
                found.append(tokenizer.decode(ids))
                ids = []
            else:
                ids.append(int(token))
    assert not ids, "the last document has no end"
    return sorted(found)


@tries(25, cost=20)
@given(texts=st.lists(st.sampled_from(STRANGE) | st.text(min_size=1, max_size=9), min_size=1))
def test_every_text_that_is_kept_comes_back_exactly(tmp_path_factory, prepared, texts):
    folder = tmp_path_factory.mktemp("strange")
    (folder / "texts").mkdir()
    kept = [text for text in texts if text.encode(errors="replace").decode() == text]
    for number, text in enumerate(kept):
        (folder / f"texts/{number}").write_bytes(text.encode())
    with bounds(folder):
        line = refused(
            lambda: prepare(
                str(folder / "texts"), str(folder / "out"), context=1, vocabulary=300,
                tokenizer=str(prepared / "tokenizer.model"), validation_fraction=0, workers=1,
            )
        )  # fmt: skip
    if line is None:
        assert documents(load_manifest(folder / "out")) == sorted(kept)
    else:
        assert not kept


@pytest.mark.parametrize("words", ["ACGT", "日本語です。", "\U0001f469\u200d\U0001f467"])
def test_text_without_a_space_gets_a_tokenizer_that_knows_one(words):
    draw = random.Random(0)
    texts = ["".join(draw.choices(words, k=500)) + "\n" for _ in range(200)]
    tokenizer = Tokenizer(train_tokenizer(texts, 300))
    for text in (*texts[:9], " a space \u2581"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def write(content):
    return lambda path: path.write_bytes(content)


def in_folder(name, make):
    return lambda path: (path.mkdir(), make(path / name))


HOSTILE = {
    "an empty file": write(b""),
    "a folder of nothing": lambda path: path.mkdir(),
    "a folder of empty files": in_folder("a.txt", write(b"")),
    "a binary file": write(b"\0\xff" * 999),
    "a FIFO": os.mkfifo,
    "a FIFO in a folder": in_folder("a.jsonl", os.mkfifo),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "a full disk": lambda path: path.symlink_to("/dev/full"),
    "a folder that leads to itself": in_folder("a", lambda path: path.symlink_to("..")),
    "a file that leads to itself": lambda path: path.symlink_to(path.name),
    "broken lines": in_folder("a.jsonl", write(b'{"text"\n[\n"x"\n{"text": 1}\n\xff\n\0\n' * 50)),
    "one endless line": in_folder("a.jsonl", write(b"[" * 2_000_000)),
    "no Parquet": in_folder("a.parquet", write(b"PAR1" * 9)),
    "a Parquet that is a FIFO": in_folder("a.parquet", os.mkfifo),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_corpus_of_nothing_is_refused_and_leaves_nothing(tmp_path, name):
    HOSTILE[name](tmp_path / "corpus")
    with bounds(tmp_path):
        assert refused(
            lambda: prepare(
                str(tmp_path / "corpus"),
                str(tmp_path / "out"),
                context=8,
                vocabulary=300,
                workers=1,
            )
        )
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, prepared, monkeypatch):
    (tmp_path / "corpus/closed").mkdir(parents=True)
    (tmp_path / "corpus/open.txt").write_text("the cat sat on the mat\n" * 2000)
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    made = prepare(
        str(tmp_path / "corpus"), str(tmp_path / "out"), context=8, vocabulary=300, workers=1,
        validation_fraction=0, tokenizer=str(prepared / "tokenizer.model"),
    )  # fmt: skip
    assert made.skipped == {"unreadable": 1}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A tokenizer and a Parquet file that are as they should be."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tokenizer").write_bytes((prepared / "tokenizer.model").read_bytes())
    rows = ["the cat sat", "on the mat", None, "", "é\0"] * 12
    pq.write_table(pa.table({"text": rows, "n": range(60)}), folder / "parquet", row_group_size=20)
    return folder


@pytest.mark.parametrize("what", ["tokenizer", "parquet"])
def test_a_broken_file_does_not_crash_what_is_written_in_another_language(whole, what):
    child = [sys.executable, Path(__file__).with_name("native.py"), what, whole / what, "300"]
    done = subprocess.run(
        child, capture_output=True, text=True, timeout=60 + FUZZ / 10,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr[-2000:]}\nlast: {whole / what}.tried"
    assert done.stderr == "", "the libraries' own complaints"


@pytest.fixture
def run(experiment, tmp_path):
    """A run that has begun, in whose tokenizer one bit has changed."""
    run = Run(tmp_path / "run")
    run.path.mkdir()
    identity = {**experiment.identity(), "data": data_identity(experiment)}
    create_or_check(run, experiment, identity)
    content = bytearray(run.tokenizer_file.read_bytes())
    content[len(content) // 2] ^= 1
    run.tokenizer_file.write_bytes(content)
    return run


def test_a_tokenizer_that_is_not_the_runs_is_not_even_parsed(run, experiment, monkeypatch, capsys):
    def parse(*_, **__):
        raise AssertionError("it was given to the library")

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", parse)
    for words in (["data", "show", str(run.path)], ["generate", str(run.path)]):
        assert cli.main(words) == 2
        assert "tokenizer.model is not the tokenizer" in capsys.readouterr().err
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    with pytest.raises(ConfigError, match="tokenizer.model is not the tokenizer"):
        Evaluation(experiment, mesh, run.tokenizer_file)
