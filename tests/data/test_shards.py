"""Merged shards have the bytes of a single process; faulty shards are named."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpt3jax
from gpt3jax import cli
from gpt3jax.data.prepare.pieces import finished, work_folder
from gpt3jax.data.prepare.prepare import prepare, request, verify
from gpt3jax.data.prepare.shards import merge_shards, parse_shard, prepare_shard
from gpt3jax.errors import ConfigError

ENV = os.environ | {"PYTHONPATH": str(Path(gpt3jax.__file__).parents[1])}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """The folder of texts is eight groups of files."""
    monkeypatch.setattr("gpt3jax.data.prepare.prepare.SHARD_BYTES", 16_000)


@pytest.fixture
def settings(data):
    """With the tokenizer of `data`."""
    tokenizer = str(data.folder / "tokenizer.model")
    return {"context": 32, "vocabulary": 300, "tokenizer": tokenizer, "workers": 1}


@pytest.fixture
def make(folder, settings):
    """Make shards of the folder of texts, or of what is changed; their records."""

    def run(out, shards, count, **changes):
        corpus = str(changes.pop("corpus", folder))
        made = request(corpus, str(out), **settings | changes)
        return [prepare_shard(made, (index, count)) for index in shards]

    return run


@pytest.fixture
def merged():
    """Merge the shards of a folder; its manifest, and the lines that were told."""

    def run(out):
        lines = []
        try:
            return merge_shards(str(out), lines.append, workers=1), lines
        except ConfigError as error:
            return str(error), lines

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("count", [1, 3, 7, 200])
def test_merged_they_are_what_one_process_writes(folder, settings, make, merged, count, tmp_path):
    one = prepare(str(folder), str(tmp_path / "one"), **settings)
    assert len(one.train.shards) >= 7 and one.validation.documents
    order = list(range(count))
    random.Random(count).shuffle(order)
    pieces = make(tmp_path / "many", order, count, workers=2 if count == 1 else 1)
    empty = sum(not piece.groups for piece in pieces)
    assert empty == max(0, count - len(one.train.shards)), "each group is in one shard"
    many, lines = merged(tmp_path / "many")
    assert (many, lines, many.hash) == (one, [], one.hash)
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert verify(tmp_path / "many") == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_pairs_what_is_skipped_and_changed_seeds_too(settings, make, merged, tmp_path):
    rows = [{"q": f"question {i} " * (i % 9), "a": "word " * (i % 40)} for i in range(1, 900)]
    lines = [*map(json.dumps, rows), "{", '{"other": 1}']
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / f"in/{i}.jsonl").write_text("\n".join(lines[i::6]) + "\n")
    os.mkfifo(tmp_path / "in/fifo.jsonl")
    changes = {"pairs": ("q", "a"), "seed": 5, "validation_fraction": 0.1}
    one = prepare(str(tmp_path / "in"), str(tmp_path / "one"), **settings | changes)
    assert len(one.skipped) == 5 and len(one.train.shards) > 2
    make(tmp_path / "two", (1, 0), 2, corpus=tmp_path / "in", **changes)
    two, _ = merged(tmp_path / "two")
    assert two == one and files(tmp_path / "one") == files(tmp_path / "two")


def test_what_is_missing_or_damaged_is_named_and_nothing_is_merged(make, merged, tmp_path):
    out = tmp_path / "out"
    make(out, (0, 2, 3, 5), 6)
    work = work_folder(out)
    (work / "shard-00004-of-00006.partial-elsewhere-7").mkdir()
    flipped = next((work / "shard-00000-of-00006").glob("train-*"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (work / "shard-00002-of-00006/validation-2.tokens").unlink()
    record = work / "shard-00003-of-00006/shard.json"
    record.write_text(record.read_text().replace('"plan": "', '"plan": "0'))
    record = work / "shard-00005-of-00006/shard.json"
    record.write_text(record.read_text().replace('"documents": 120', '"documents": 121', 1))
    shutil.copytree(work / "shard-00005-of-00006", work / "shard-00001-of-00006")
    error, lines = merged(out)
    for line, why in zip(
        lines,
        (
            f"shard 0/6 is damaged: {flipped.name} is not what was written. Delete ",
            "shard 1/6 is damaged: its groups are not those of this shard",
            "shard 2/6 is damaged: [Errno 2]",
            "shard 3/6 is damaged: it was made for another plan",
            "shard 4/6 is missing: started but not finished",
        ),
        strict=True,
    ):
        assert line.startswith(why) and "\n" not in line
    assert "of 6 shards 5 cannot be used (0,1,2,3,4)" in error
    assert not out.exists()

    for index in (0, 1, 2, 3):
        shutil.rmtree(work / f"shard-0000{index}-of-00006")
    make(out, (0, 1, 2, 3, 4), 6)
    error, lines = merged(out)
    assert lines[0].startswith("shard 5/6 found another corpus: 121 documents, not 120. Delete")
    assert len(lines) == 1 and not out.exists()
    shutil.rmtree(work / "shard-00005-of-00006")
    assert "(5)" in merged(out)[0] and merged(out)[1] == ["shard 5/6 is missing: never started"]
    make(out, (5,), 6)
    assert merged(out)[0].train_windows and not work.exists()


def test_shards_of_other_settings_tokenizers_and_counts_are_refused(
    folder, make, tmp_path, write_folder
):
    out = tmp_path / "out"
    make(out, (0,), 3)
    before = {path: path.stat().st_mtime_ns for path in work_folder(out).rglob("*")}
    prepare(str(folder), str(tmp_path / "t"), context=32, vocabulary=310, workers=1)
    for changes, why in (
        ({"context": 64}, "context 32, now 64"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"validation_fraction": 0.2}, "validation_fraction 0.01, now 0.2"),
        ({"tokenizer": str(tmp_path / "t")}, "tokenizer .*, now "),
    ):
        with pytest.raises(ConfigError, match=f"started differently: {why}"):
            make(out, (1,), 3, **changes)
    with pytest.raises(ConfigError, match="started differently: shards 3, now 4"):
        make(out, (1,), 4)
    assert {path: path.stat().st_mtime_ns for path in work_folder(out).rglob("*")} == before

    texts = write_folder(tmp_path / "texts")
    make(tmp_path / "b", (0,), 3, corpus=texts)
    (texts / "007.txt").write_text("file007\nanother text now\n")
    with pytest.raises(ConfigError, match=r"started differently: the corpus has changed\."):
        make(tmp_path / "b", (1,), 3, corpus=texts)


def test_text_that_changes_after_it_was_counted_is_refused(make, merged, tmp_path):
    """Of the same size, so that only the reading can tell."""
    (tmp_path / "in").mkdir()
    row = json.dumps({"text": "some words to learn " * 20}) + "\n"
    for i in range(8):
        (tmp_path / f"in/{i}.jsonl").write_text(row * 50)
    make(tmp_path / "out", (0,), 2, corpus=tmp_path / "in")
    for i in range(8):
        (tmp_path / f"in/{i}.jsonl").write_text(" " * (len(row) - 1) + "\n" + row * 49)
    with pytest.raises(ConfigError, match=r"corpus has changed: .* documents, .* bytes, now "):
        make(tmp_path / "out", (1,), 2, corpus=tmp_path / "in")
    assert merged(tmp_path / "out")[1] == ["shard 1/2 is missing: never started"]


def test_a_shard_that_is_there_is_verified_and_left(make, tmp_path):
    out = tmp_path / "out"
    first = make(out, (1,), 3)
    before = {path: path.stat().st_mtime_ns for path in work_folder(out).rglob("*")}
    assert make(out, (1,), 3) == first and finished(str(out)) == (1, 3)
    assert {path: path.stat().st_mtime_ns for path in work_folder(out).rglob("*")} == before
    tokens = next(work_folder(out).glob("shard-*/validation-*.tokens"))
    tokens.write_bytes(tokens.read_bytes() + b"..")
    with pytest.raises(ConfigError, match=r"damaged: validation-.* is not what was written"):
        make(out, (1,), 3)


def test_groups_are_counted_once_and_a_damaged_count_again(make, tmp_path, monkeypatch):
    taken = []
    count = sys.modules["gpt3jax.data.prepare.shards"].take_census
    monkeypatch.setattr(
        "gpt3jax.data.prepare.shards.take_census",
        lambda corpus, rate, group: (taken.append(group), count(corpus, rate, group))[1],
    )
    (first,) = make(tmp_path / "out", (2,), 3)
    assert len(taken) == len(set(taken)) >= 7, "the first to come counts all"
    taken.clear()
    damaged = work_folder(tmp_path / "out") / "census-00001.json"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    (second,) = make(tmp_path / "out", (0,), 3)
    assert len(taken) == 1 and damaged.read_bytes() == whole
    assert second.corpus == first.corpus
    damaged.write_text(damaged.read_text().replace('"bytes": {', '"bytes": {"70000": 1, '))
    other = work_folder(tmp_path / "out") / "census-00002.json"
    other.write_text(other.read_text().replace('"plan": "', '"plan": "0'))
    make(tmp_path / "out", (1,), 3)
    assert len(taken) == 3 and damaged.read_bytes() == whole, "nor one of another plan"


def test_who_comes_second_to_begin_takes_the_plan_that_is_there(make, tmp_path, monkeypatch):
    """Both find nothing, both write a plan; one of them is first."""
    make(tmp_path / "out", (0,), 3)
    work, is_free = (
        work_folder(tmp_path / "out"),
        sys.modules["gpt3jax.data.prepare.shards"].is_free,
    )
    seen = []

    def first_free(path):
        seen.append(path)
        return seen.count(work) == 1 and path == work or is_free(path)

    monkeypatch.setattr("gpt3jax.data.prepare.shards.is_free", first_free)
    make(tmp_path / "out", (1,), 3)
    assert seen.count(work) == 2 and finished(str(tmp_path / "out")) == (2, 3)
    seen.clear()
    with pytest.raises(ConfigError, match="started differently: seed 0, now 1"):
        make(tmp_path / "out", (2,), 3, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.shards"]


def test_a_merge_that_fails_or_is_killed_leaves_the_shards(make, merged, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(out, (0, 1), 2)
    shards = {path: path.stat().st_size for path in work_folder(out).rglob("*")}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("gpt3jax.data.prepare.shards.finish", full)
        merged(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.shards"]
    assert {path: path.stat().st_size for path in work_folder(out).rglob("*")} == shards

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        # As if killed before it tidied up.
        patch.setattr("gpt3jax.data.prepare.shards.shutil.rmtree", full)
        merged(out)
    whole = files(out)
    assert merged(out)[0].train_windows and files(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert make(out, (1,), 2) == [None], "nothing is left to do"
    with pytest.raises(ConfigError, match="made differently: context 32, now 64"):
        make(out, (1,), 2, context=64)


def test_without_links_files_are_copied(folder, settings, make, merged, tmp_path, monkeypatch):
    def unable(*_):
        raise OSError(95, "Operation not supported")

    make(tmp_path / "out", (0, 1), 2)
    monkeypatch.setattr(os, "link", unable)
    one = prepare(str(folder), str(tmp_path / "one"), **settings)
    assert merged(tmp_path / "out")[0] == one
    assert files(tmp_path / "one") == files(tmp_path / "out")


PROGRAM = """
import sys, time
import gpt3jax.data.prepare.prepare as p
p.SHARD_BYTES = 16_000
from gpt3jax.data.prepare.shards import prepare_shard
corpus, out, tokenizer, index, count, wait = sys.argv[1:]
made = p.request(corpus, out, context=32, vocabulary=300, tokenizer=tokenizer, workers=1)
def report(stage, share):
    print(stage, flush=True)
    time.sleep(float(wait))
prepare_shard(made, (int(index), int(count)), report)
"""


@pytest.fixture
def start(folder, settings):
    """Start a process at a shard; it says what it is at."""

    def run(out, index, count, wait=0.0):
        words = [folder, out, settings["tokenizer"], index, count, wait]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)],
            env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


def test_killed_and_at_once_and_twice(folder, settings, start, merged, tmp_path):
    """One of three dies for good; then all three are made at once, each by two processes."""
    out = tmp_path / "out"
    victim = start(out, 1, 3, wait=0.1)
    while victim.stdout.readline() != "encoding\n":
        assert victim.poll() is None, victim.stderr.read()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert merged(out)[1] == [
        "shard 0/3 is missing: never started",
        "shard 1/3 is missing: started but not finished",
        "shard 2/3 is missing: never started",
    ]
    running = [start(out, index, 3, wait=0.02) for index in (0, 1, 2) * 2]
    for each in running:
        _, said = each.communicate(timeout=120)
        assert (each.returncode, said) == (0, "")
    one = prepare(str(folder), str(tmp_path / "one"), **settings)
    assert merged(out) == (one, [])
    assert files(tmp_path / "one") == files(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("3", "must be I/N"), ("-1/4", "must be I/N"), ("1/4/2", "must be I/N"), ("", "must be I/N"),
     ("0/0", "from 1 to 99,999"), ("1/100000", "from 1 to 99,999"),
     ("4/4", r"the last is 3/4. Change I \(of a Slurm array: --array 0-3\)")],
)  # fmt: skip
def test_numbers_of_shards_are_refused_in_words(text, why):
    with pytest.raises(ConfigError, match=why):
        parse_shard(text)


def test_the_commands(folder, settings, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "prepare", "--corpus", str(folder), "--out", str(out), "--context", "32",
             "--workers", "1"]  # fmt: skip
    assert cli.main([*words, "--shard", "0/2"]) == 2
    assert "--shard requires --tokenizer: " in capsys.readouterr().err
    assert cli.main(["data", "merge", str(out)]) == 2
    assert f"error: {out} has no shards" in capsys.readouterr().err
    words += ["--tokenizer", settings["tokenizer"]]
    assert cli.main([*words, "--shard", "1/2"]) == 0
    said = capsys.readouterr().out
    assert "of 120 documents; 1 of 2 shards are finished. Then run: gpt3jax data merge" in said
    assert cli.main(["data", "merge", str(out), "--workers", "1"]) == 2
    said = capsys.readouterr().err.splitlines()
    err = [line for line in said if not line.startswith("verifying ")]
    assert err[0] == "shard 0/2 is missing: never started" and err[1].startswith("error: ")
    assert len(err) == 2 and not out.exists()
    assert cli.main([*words, "--shard", "0/2"]) == 0
    assert cli.main(["data", "merge", str(out), "--workers", "0"]) == 2
    capsys.readouterr()
    assert cli.main(["data", "merge", str(out), "--workers", "1"]) == 0
    merged = capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*words[:4], "--out", str(tmp_path / "one"), *words[6:]]) == 0
    one = capsys.readouterr().out.splitlines()[-1]
    assert merged == one.replace(str(tmp_path / "one"), str(out))
    assert cli.main([*words, "--shard", "0/2"]) == 0
    assert "exists already: all its shards are merged" in capsys.readouterr().out
