"""Pairs of prompt and completion: packed uncut, in order, with a loss on completions only."""

import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from gpt3jax.commands.data import data_show
from gpt3jax.config import Data, Source
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.pairs import shown, tokens_of
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError

CONTEXT = 32


def rows(count):
    return [
        {"q": f"{i} caf\u00e9:", "a": f" {i * 7} \u2581{'!' * (i % 5)}\n"} for i in range(count)
    ]


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n"
                            for line in lines))  # fmt: skip
    return str(path)


@pytest.fixture
def settings(data):
    """Of `prepare`, with the tokenizer of the folder `data`."""
    return {
        "context": CONTEXT, "vocabulary": 300, "workers": 1, "tokenizer": str(data.folder),
        "pairs": ("q", "a"), "validation_fraction": 0.1,
    }  # fmt: skip


@pytest.fixture
def tokenizer(data):
    return Tokenizer.load(data.folder / "tokenizer.model")


def stored(manifest, split):
    windows = []
    for shard in split.shards:
        records = ArrayRecordReader(str(manifest.folder / shard.name)).read_all()
        windows += [np.frombuffer(record, manifest.dtype) for record in records]
    assert {len(window) for window in windows} == {CONTEXT + 1}
    return np.stack(windows)


def pairs_in(windows, tokenizer):
    """(prompt, completion) of each pair, from the ids alone."""
    found = []
    for window in windows:
        *pairs, padding = np.split(window, np.flatnonzero(window == tokenizer.end_of_text) + 1)
        assert (padding == ~tokenizer.end_of_text).all()
        for pair in pairs:
            prompt, learned = tokens_of(pair[pair < 0]).tolist(), pair[pair >= 0].tolist()
            assert (np.diff((pair >= 0).astype(int)) >= 0).all(), "the prompt comes first"
            found.append((tokenizer.decode(prompt), tokenizer.decode(learned[:-1])))
    return found


def test_every_pair_is_in_one_window_whole_and_its_completion_alone_is_learned(
    settings, tokenizer, tmp_path
):
    corpus = write(tmp_path / "a.jsonl", rows(150))
    found = prepare(corpus, str(tmp_path / "out"), **settings)
    train, held_out = (stored(found, split) for split in (found.train, found.validation))
    seen = pairs_in(train, tokenizer) + pairs_in(held_out, tokenizer)
    assert sorted(seen) == sorted((row["q"], row["a"]) for row in rows(150))
    assert 5 <= found.validation.documents < 40
    assert found.train.documents == len(pairs_in(train, tokenizer))
    assert found.train.tokens == (train >= 0).sum() and found.train.dropped_tokens == 0
    completions = [completion for _, completion in pairs_in(train, tokenizer)]
    assert found.train.bytes == sum(len(text.encode()) for text in completions)
    assert (train[:, 0] < 0).all(), "a window begins with a prompt, at position 0"
    used = [int((np.flatnonzero(window >= 0) + 1)[-1]) for window in train]
    first = [int(np.flatnonzero(window == tokenizer.end_of_text)[0]) + 1 for window in train]
    for length, following in zip(used, first[1:], strict=False):
        assert length + following > CONTEXT + 1, "what fits is not put off"
    assert load_manifest(tmp_path / "out") == found and found.pairs == ("q", "a")
    assert found.dtype == "<i2" and np.dtype(found.dtype).kind == "i"


def test_the_loader_gives_complements_and_checks_them(settings, tokenizer, tmp_path):
    corpus = write(tmp_path / "a.jsonl", rows(100))
    found = prepare(corpus, str(tmp_path / "out"), **settings)
    data = Data((Source("pairs", str(tmp_path / "out")),))
    order = loader.windows(data, 0, CONTEXT)
    windows = {tuple(order[i].tolist()) for i in range(found.train_windows)}
    assert windows == {tuple(window.tolist()) for window in stored(found, found.train)}
    assert order[0].dtype == np.int32
    read = max((order[i][order[i] < 0] for i in range(found.train_windows)), key=lambda x: -x.min())
    order._splits[0]._vocabulary = largest = int(~read.min())
    with pytest.raises(ConfigError, match=f"ids up to {largest} "):
        [order[i] for i in range(found.train_windows)]


BAD = [
    "{\n", "[1]\n", "\n", {"q": "x"}, {"a": "x"}, {"q": 3, "a": "x"}, {"q": "x", "a": None},
    {"q": "x", "a": ""}, {"q": "x" * 200, "a": "y"}, {"q": "x", "a": "y" * 200},
]  # fmt: skip


def test_what_is_no_pair_is_counted_by_reason(settings, tmp_path):
    corpus = write(tmp_path / "a.jsonl", [*rows(100), *BAD])
    found = prepare(corpus, str(tmp_path / "out"), **settings)
    assert found.skipped == {
        "empty": 1, "empty completion": 1, "longer than the context": 2, "malformed JSON": 1,
        "no text in field 'a'": 2, "no text in field 'q'": 3,
    }  # fmt: skip
    assert found.train.documents + found.validation.documents == 100


def test_data_without_one_good_pair_is_refused_in_words(settings, tmp_path):
    long = write(tmp_path / "long.jsonl", BAD)
    with pytest.raises(ConfigError, match=r"no pair is left.*2 longer than the context.*--context"):
        prepare(long, str(tmp_path / "out"), **settings)
    bad = write(tmp_path / "bad.jsonl", BAD[:-2])
    with pytest.raises(ConfigError, match=r"no documents: 3 no text in field 'q'"):
        prepare(bad, str(tmp_path / "out"), **settings)
    (tmp_path / "text.txt").write_text("text\n")
    with pytest.raises(ConfigError, match=r"1 not \.jsonl or \.parquet"):
        prepare(str(tmp_path / "text.txt"), str(tmp_path / "out"), **settings)
    with pytest.raises(ConfigError, match="--pairs requires --tokenizer"):
        prepare(bad, str(tmp_path / "out"), **settings | {"tokenizer": None})
    assert not (tmp_path / "out").exists()


def test_pairs_that_just_fit_are_kept(settings, tokenizer, tmp_path):
    answer = "y" * 8
    room = CONTEXT - len(tokenizer.encode(answer))
    text = next(t for n in range(300) if len(tokenizer.encode(t := "\u00ff" * n + "q")) >= room)
    exact = len(tokenizer.encode(text))
    lines = [{"q": text, "a": answer}]
    given = settings | {"validation_fraction": 0, "context": exact + CONTEXT - room}
    found = prepare(write(tmp_path / "a.jsonl", lines), str(tmp_path / "fits"), **given)
    assert found.train.documents == 1 and found.train_windows == 1
    with pytest.raises(ConfigError, match="1 longer than the context"):
        less = given | {"context": given["context"] - 1}
        prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "not"), **less)


def test_an_empty_prompt_is_the_start_of_a_document(settings, tokenizer, tmp_path):
    corpus = write(tmp_path / "a.jsonl", [{"q": "", "a": "value"}] * 30)
    given = settings | {"validation_fraction": 0}
    found = prepare(corpus, str(tmp_path / "out"), **given)
    window = stored(found, found.train)[0]
    length = len(tokenizer.encode("value")) + 2
    assert window[0] == ~tokenizer.end_of_text and window[length - 1] == tokenizer.end_of_text
    assert window[length] == ~tokenizer.end_of_text and window[length + 1] >= 0


def test_parquet_pairs_are_those_of_jsonl(settings, tokenizer, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    lines = [*rows(60), {"q": "x", "a": None}]
    columns = {name: [row[name] for row in lines] for name in ("a", "q")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = prepare(str(tmp_path / "a.parquet"), str(tmp_path / "out"), **settings)
    seen = pairs_in(np.concatenate([stored(found, found.train), stored(found, found.validation)]),
                    tokenizer)  # fmt: skip
    assert sorted(seen) == sorted((row["q"], row["a"]) for row in rows(60))
    assert found.skipped == {"empty completion": 1}
    with pytest.raises(ConfigError, match="no field 'z'.*--pairs"):
        given = settings | {"pairs": ("z", "a")}
        prepare(str(tmp_path / "a.parquet"), str(tmp_path / "none"), **given)


def test_what_is_not_learned_is_shown_between_brackets(settings, tokenizer, tmp_path, capsys):
    corpus = write(tmp_path / "a.jsonl", rows(40))
    prepare(corpus, str(tmp_path / "out"), **settings)
    data_show(tmp_path / "out", rows=2)
    text = capsys.readouterr().out
    assert "[[" in text and "\u00e9:]] " in text and "<|endoftext|>" in text
    end, hello = tokenizer.end_of_text, tokenizer.encode("hello")
    window = np.array([*(~t for t in hello), *hello, end, ~end, *hello, end, ~end, ~end])
    assert shown(window, tokenizer) == (
        "[[hello]]hello<|endoftext|>\n[[<|endoftext|>]]hello<|endoftext|>\n[[padding: 2 tokens]]"
    )
    assert shown(np.array([*hello, end]), tokenizer) == "hello", "as ever where all is learned"
