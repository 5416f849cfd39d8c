"""The tokenizer sample and the held-out split are proportional to the text, also if it is small."""

import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from gpt3jax.data.prepare.census import bucket
from gpt3jax.data.prepare.prepare import prepare, verify
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError

CONTEXT = 32
SMALL = {"context": CONTEXT, "workers": 1}
WORDS = ["attention", "window", "token", "gradient", "layer", "value", "key", "query", "caf\u00e9"]


def text(words, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def write(path, content):
    path.write_text(content)
    return str(path)


def predicted(manifest, split):
    """The tokens that the windows of a split predict, in order."""
    windows = [
        np.frombuffer(record, manifest.dtype)
        for shard in split.shards
        for record in ArrayRecordReader(str(manifest.folder / shard.name)).read_all()
    ]
    return np.concatenate([window[1:] for window in windows]).tolist()


@pytest.mark.parametrize("form", ["txt", "jsonl", "long line"])
@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_the_end_of_a_corpus_of_one_document_is_held_out(tmp_path, data, form, fraction):
    one = text(1500)
    content = json.dumps({"text": one}) if form == "jsonl" else one
    corpus = write(tmp_path / f"a.{'jsonl' if form == 'jsonl' else 'txt'}", content)
    given = SMALL | {"tokenizer": str(data.folder), "validation_fraction": fraction}
    made = prepare(corpus, str(tmp_path / "out"), **given)
    tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
    tokens = [*tokenizer.encode(one), tokenizer.end_of_text]
    held_out = math.ceil(fraction * len(tokens) / CONTEXT) * CONTEXT
    assert predicted(made, made.validation) == tokens[-held_out:]
    kept = len(tokens) - held_out
    assert predicted(made, made.train) == tokens[: kept // CONTEXT * CONTEXT]
    assert (made.train.tokens, made.validation.tokens) == (kept, held_out)
    assert made.train.bytes + made.validation.bytes == len(one.encode())
    end = tokenizer.decode(tokens[-held_out:]).encode()
    assert abs(made.validation.bytes - len(end)) <= 4, "but for a character that is divided"
    assert made.train.documents == 1 and made.validation.documents == 0
    assert verify(tmp_path / "out") == made


def test_what_is_too_short_for_two_windows_says_what_works(tmp_path, data):
    corpus = write(tmp_path / "a.txt", text(20))
    given = SMALL | {"tokenizer": str(data.folder)}
    tokens = len(Tokenizer.load(data.folder / "tokenizer.model").encode(text(20))) + 1
    with pytest.raises(ConfigError, match="lower --context, or hold out none: --validation-fra"):
        prepare(corpus, str(tmp_path / "out"), **given | {"context": tokens - 1})
    none = given | {"context": tokens, "validation_fraction": 0}
    assert prepare(corpus, str(tmp_path / "none"), **none).train_windows == 1
    less = prepare(corpus, str(tmp_path / "less"), **given | {"context": tokens // 2})
    assert less.train_windows == less.validation_windows == 1
    with pytest.raises(ConfigError, match=f"a window takes {tokens + 1}. Add text, or lower"):
        prepare(corpus, str(tmp_path / "out"), **none | {"context": tokens + 1})


def test_a_small_document_before_a_large_one_leaves_text_to_train_on(tmp_path, data):
    (tmp_path / "in").mkdir()
    names = sorted((f"{i}.txt" for i in range(9)), key=bucket)
    write(tmp_path / "in" / names[0], "key")
    write(tmp_path / "in" / names[-1], text(1500))
    made = prepare(str(tmp_path / "in"), str(tmp_path / "out"), tokenizer=str(data.folder), **SMALL)
    assert made.validation.documents == made.train.documents == 1 and made.validation_windows >= 1
    assert made.train_windows > 100


def test_one_pair_alone_is_not_cut_and_says_what_works(tmp_path, data):
    corpus = write(tmp_path / "a.jsonl", json.dumps({"q": "key", "a": "value"}))
    given = SMALL | {"tokenizer": str(data.folder), "pairs": ("q", "a")}
    with pytest.raises(ConfigError, match="held out: 1.*--validation-fraction 0"):
        prepare(corpus, str(tmp_path / "out"), **given)
    made = prepare(corpus, str(tmp_path / "none"), **given, validation_fraction=0)
    assert made.train.documents == made.train_windows == 1


@pytest.fixture
def small_sample(monkeypatch):
    """A tokenizer is trained on 40 kB."""
    for module in ("prepare.census", "tokenizer"):
        monkeypatch.setattr(f"gpt3jax.data.{module}.SAMPLE_BYTES", 40_000)


ROWS = [text(600, seed) for seed in range(60)]  # About 220 kB.
JUNK = "0123456789abcdef" * 2000


def test_a_sample_is_the_same_whatever_lies_beside_the_text(tmp_path, small_sample):
    (tmp_path / "a.txt").mkdir()
    forms = {
        "plain.jsonl": "\n".join(json.dumps({"text": row}) for row in ROWS),
        "wide.jsonl": "\n".join(json.dumps({"text": row, "junk": JUNK}) for row in ROWS),
    }
    tables = {"plain": {"text": ROWS}, "wide": {"text": ROWS, "junk": [JUNK] * len(ROWS)}}
    hashes = {}
    for name, content in forms.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.jsonl", content)
    for name, columns in tables.items():
        (tmp_path / f"{name}.parquet").mkdir()
        table = pa.table(columns)
        pq.write_table(table, tmp_path / f"{name}.parquet/a.parquet", use_dictionary=False)
    for name in (*forms, "plain.parquet", "wide.parquet"):
        out = tmp_path / f"{name}.out"
        made = prepare(str(tmp_path / name), str(out), vocabulary=320, **SMALL)
        hashes[name] = (made.tokenizer, made.train.bytes_per_token)
    # Keys are of bytes in JSON and of rows in Parquet, so that what is drawn differs a little.
    assert hashes["plain.parquet"] == hashes["wide.parquet"]
    measured = [figure for _, figure in hashes.values()]
    assert max(measured) / min(measured) < 1.02


def test_a_sample_is_as_large_as_it_should_be_and_of_all_the_text(
    tmp_path, small_sample, monkeypatch
):
    sampled, short = [], [text(60, seed) for seed in range(600)]
    monkeypatch.setattr(
        "gpt3jax.data.prepare.prepare.train_tokenizer",
        lambda texts, vocabulary: sampled.append(list(texts)) or 1 / 0,
    )
    for name, junk in (("few", ""), ("much", JUNK)):
        rows = [{"text": row, "junk": junk} for row in short]
        corpus = write(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, rows)))
        monkeypatch.setattr("gpt3jax.data.prepare.prepare.SHARD_BYTES", 200_000)
        with pytest.raises(ZeroDivisionError):
            prepare(corpus, str(tmp_path / "out"), **SMALL)
    for texts in sampled:
        assert all(each in short for each in texts)
        assert 32_000 < sum(len(each.encode()) for each in texts) < 48_000


def test_binary_files_do_not_take_the_place_of_text_in_a_sample(tmp_path, small_sample):
    for name in ("alone", "beside"):
        (tmp_path / name).mkdir()
        for i, row in enumerate(ROWS):
            write(tmp_path / name / f"{i:03}.txt", row)
        for i in range(60):  # So that both are cut alike.
            (tmp_path / name / f"{i:03}.bin").write_bytes(
                b"\0\xff" * (1 if name == "alone" else 50_000)
            )
    made = [
        prepare(str(tmp_path / name), str(tmp_path / f"{name}.out"), vocabulary=320, **SMALL)
        for name in ("alone", "beside")
    ]
    assert made[0].tokenizer == made[1].tokenizer
