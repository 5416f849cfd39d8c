"""Prepared data is reproducible and atomic, and has every token exactly once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

import gpt3jax
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.data.prepare.census import bucket
from gpt3jax.data.prepare.prepare import load_manifest, prepare, verify
from gpt3jax.data.prepare.worker_pool import processes
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError

SMALL = {"context": 32, "vocabulary": 300, "workers": 1}


def stream(folder, shard, dtype):
    """The tokens that a shard's windows predict, in order; their overlap is checked."""
    reader = ArrayRecordReader(str(folder / shard.name))
    windows = np.stack([np.frombuffer(record, dtype) for record in reader.read_all()])
    assert len(windows) == shard.windows
    assert (windows[1:, 0] == windows[:-1, -1]).all()
    return windows[0, 0], windows[:, 1:].reshape(-1).tolist()


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_every_token_is_predicted_exactly_once(data, folder):
    tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
    found = {}
    for split in (data.train, data.validation):
        (shard,) = split.shards
        first, tokens = stream(data.folder, shard, data.dtype)
        assert first == data.end_of_text
        assert len(tokens) + split.dropped_tokens == split.tokens
        assert split.dropped_tokens < data.context
        *documents, tail = "".join(
            "\x1e" if token == data.end_of_text else tokenizer.decode([token]) for token in tokens
        ).split("\x1e")
        found |= {text.split("\n")[0]: text for text in documents}
        if tail:
            found[tail.split("\n")[0]] = tail
    texts = {path.read_text() for path in folder.iterdir()}
    missing = texts - set(found.values())
    # Only the last document of each split may have lost its end.
    assert len(missing) <= 2 and len(found) == len(texts)
    whole = data.train.bytes + data.validation.bytes
    assert whole == sum(path.stat().st_size for path in folder.iterdir())


def test_validation_is_whole_documents_and_the_share_asked_for(data, folder):
    tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
    _, tokens = stream(data.folder, data.validation.shards[0], data.dtype)
    text = tokenizer.decode(tokens)
    keys = sorted(open_corpus(str(folder)).parts, key=lambda part: bucket(part.key))
    held_out = [part.key.removesuffix(".txt") for part in keys[: data.validation.documents]]
    assert sorted(word[4:] for word in text.split() if word.startswith("file")) == sorted(held_out)
    assert data.validation.documents + data.train.documents == 120
    assert 0.01 <= data.validation.bytes / (data.train.bytes + data.validation.bytes) < 0.04


def test_holdout_does_not_depend_on_the_seed(folder, data, tmp_path):
    again = prepare(str(folder), str(tmp_path / "out"), seed=1, **SMALL)
    assert again.validation.bytes == data.validation.bytes and again.hash != data.hash


def test_bytes_do_not_depend_on_workers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt3jax.data.prepare.prepare.SHARD_BYTES", 20_000)
    settings = SMALL | {"workers": 1}
    one = prepare(str(folder), str(tmp_path / "one"), **settings)
    two = prepare(str(folder), str(tmp_path / "two"), **settings | {"workers": 2})
    assert len(one.train.shards) > 3 and files(tmp_path / "one") == files(tmp_path / "two")
    assert one == two and one.hash == two.hash


def test_script_without_main_guard_can_prepare(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import gpt3jax.data.prepare.prepare as p\np.SHARD_BYTES = 20_000\n"
        f"p.prepare({str(folder)!r}, {str(tmp_path / 'out')!r}, context=32, vocabulary=300, "
        "workers=2)\nprint('once')\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(gpt3jax.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, env=env
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
    assert verify(tmp_path / "out").train_windows > 0


def test_killed_prepare_leaves_nothing_complete_and_no_process(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import gpt3jax.data.prepare.prepare as p, time\np.SHARD_BYTES = 20_000\n"
        f"p.prepare({str(folder)!r}, {str(out)!r}, context=32, vocabulary=300, workers=2, "
        "progress=lambda stage, share: (print(stage, flush=True), time.sleep(0.2)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    while child.stdout.readline() != b"encoding\n":
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("out.partial-")
    for path in (out, left):
        with pytest.raises(ConfigError):
            load_manifest(path)
    deadline = time.monotonic() + 10
    while _session_runs(child.pid):
        assert time.monotonic() < deadline, "workers outlive a killed prepare"
        time.sleep(0.05)
    prepare(str(folder), str(out), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_worker_is_said_in_words():
    with pytest.raises(RuntimeError, match="Use fewer --workers"), processes(2) as run:
        list(run(os._exit, [1, 1]))


def _session_runs(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_failed_prepare_leaves_nothing(folder, tmp_path):
    with pytest.raises(ConfigError, match="Use .* or less"):
        prepare(str(folder), str(tmp_path / "out"), context=32, vocabulary=5000, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_finished_data_is_found_and_never_overwritten(folder, data):
    before = files(data.folder)
    assert prepare(str(folder), str(data.folder), **SMALL) == data
    for change in ({"context": 64}, {"vocabulary": 310}, {"seed": 3}, {"validation_fraction": 0.1}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} .*Choose another --out"):
            prepare(str(folder), str(data.folder), **SMALL | change)
    assert files(data.folder) == before


def test_changed_corpus_and_foreign_folder_are_refused(write_folder, tmp_path):
    texts = write_folder(tmp_path / "texts")
    prepare(str(texts), str(tmp_path / "out"), **SMALL)
    (texts / "000.txt").write_text("file000\nmuch shorter now\n")
    with pytest.raises(ConfigError, match="the corpus has changed"):
        prepare(str(texts), str(tmp_path / "out"), **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        prepare(str(texts), str(tmp_path / "mine"), **SMALL)


def test_given_tokenizer_is_used(data, other):
    assert other.tokenizer == data.tokenizer and not other.tokenizer_trained
    assert (other.folder / "tokenizer.model").read_bytes() == (
        data.folder / "tokenizer.model"
    ).read_bytes()


def test_counts_of_what_was_left_out_are_in_the_manifest(tmp_path):
    lines = [json.dumps({"body": f"words of document {i} " * 20}) for i in range(200)]
    lines += ["{", "", '{"other": 1}']
    text = "\n".join(lines).encode() + b'\n{"body": "caf\xe9"}'
    (tmp_path / "a.jsonl").write_bytes(text)
    data = prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), field="body", **SMALL)
    assert data.skipped == {"empty": 1, "malformed JSON": 1, "no text in field 'body'": 1}
    assert data.train.invalid_utf8 + data.validation.invalid_utf8 == 1
    with pytest.raises(ConfigError, match=r"202 no text in field 'text'.*\(fields: body\)"):
        prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "none"), **SMALL)


def test_text_that_gives_no_windows_is_refused(data, tmp_path):
    (tmp_path / "a.txt").write_text("many small words here\n" * 600)
    with pytest.raises(ConfigError, match="no training window: of 1 document.*lower --context"):
        change = {"validation_fraction": 0, "context": 100_000}
        prepare(str(tmp_path / "a.txt"), str(tmp_path / "out"), **SMALL | change)
    for i in range(100):
        (tmp_path / f"{i}.txt").write_text("a short text\n")
    given = {"context": 128, "tokenizer": str(data.folder / "tokenizer.model")}
    with pytest.raises(ConfigError, match="Raise --validation-fraction"):
        prepare(str(tmp_path / "[0-9]*.txt"), str(tmp_path / "out"), **SMALL | given)


def test_arguments_out_of_range_are_refused(folder, tmp_path):
    for change in ({"context": 0}, {"validation_fraction": 1.0}, {"workers": -1}):
        with pytest.raises(ConfigError, match="^--"):
            prepare(str(folder), str(tmp_path / "out"), **SMALL | change)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(str(folder), str(tmp_path / "file/out"), **SMALL)


@pytest.fixture
def copy(data, tmp_path):
    for name, content in files(data.folder).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_verify_finds_one_flipped_bit_and_missing_files(copy, data):
    assert verify(copy) == data
    for name in (data.train.shards[0].name, "tokenizer.model"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} is damaged"):
            verify(copy)
        (copy / name).unlink()
        with pytest.raises(ConfigError, match=f"{name} is missing"):
            verify(copy)
        (copy / name).write_bytes((data.folder / name).read_bytes())


def test_manifest_errors_say_what_it_is(copy, tmp_path):
    record = json.loads((copy / "manifest.json").read_text())
    for text, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"version": 1}), "is damaged"),
        (json.dumps(record | {"version": 9}), "has format 9"),
        (json.dumps(record | {"context": 64}), "hash does not match"),
    ):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_manifest(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="is not prepared data"):
        load_manifest(copy)
    with pytest.raises(ConfigError, match="no such folder"):
        load_manifest(tmp_path / "none")


def test_bytes_per_token_is_text_over_tokens(data):
    assert data.train.bytes_per_token == data.train.bytes / data.train.tokens > 1
    assert data.validation.bytes_per_token == data.validation.bytes / data.validation.tokens
    assert data.validation_windows == data.validation.tokens // 32
