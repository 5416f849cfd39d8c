"""Messages of `data prepare`, and that the advice in them works."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gpt3jax
from gpt3jax import cli
from gpt3jax.config import Data, Source
from gpt3jax.data import loader
from gpt3jax.data.byte_level import END_OF_TEXT, LETTERS, to_json
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.interchange.tokenizer_files import read_tokenizer
from gpt3jax.runtime.atomic_folder import atomic_folder

ENV = os.environ | {"PYTHONPATH": str(Path(gpt3jax.__file__).parents[1])}
SMALL = ["--context", "32", "--vocabulary", "300", "--workers", "1"]


def test_what_was_left_out_is_said_with_its_reasons(folder, tmp_path, capsys):
    texts = [path.read_bytes() for path in sorted(folder.iterdir())]
    (tmp_path / "in").mkdir()
    for i, text in enumerate([*texts, b"caf\xe9 window\n", *[b"\0\xff"] * 7, b"", b"", b""]):
        (tmp_path / f"in/{i:03}.txt").write_bytes(text)
    out = tmp_path / "out"
    assert cli.main(["data", "prepare", "--corpus", str(tmp_path / "in"), "--out", str(out),
                     *SMALL]) == 0  # fmt: skip
    line = capsys.readouterr().out.splitlines()[-1]
    assert "skipped 10 (7 binary, 3 empty)" in line and "; 1 not UTF-8, read as U+FFFD" in line
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    tokens = sum(len(tokenizer.encode(text.decode())) + 1 for text in texts)
    tokens += len(tokenizer.encode("caf\ufffd window\n")) + 1
    windows = re.search(r" in ([\d,]+) windows? of 32; held out .*, ([\d,]+) windows?;", line)
    read = 32 * sum(int(count.replace(",", "")) for count in windows.groups())
    assert f"dropped {tokens - read:,} tokens that fill no window" in line


def test_one_is_not_many(data, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("window token layer value " * 100)
    words = ["--corpus", str(tmp_path / "a.txt"), "--tokenizer", str(data.folder), "--workers", "1"]
    words = ["data", "prepare", *words, "--out", str(tmp_path / "out"), "--context"]
    tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
    half = len(tokenizer.encode((tmp_path / "a.txt").read_text())) // 2
    assert cli.main([*words, str(half)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f": 1 document, {half + 1} tokens (" in line and f" in 1 window of {half}; " in line
    assert "held out the end of a document, 1 window; skipped 0" in line
    words[words.index("--out") + 1] += "-long"
    assert cli.main([*words, "4000", "--validation-fraction", "0"]) == 2
    assert "of 1 document, " in capsys.readouterr().err


def test_a_corpus_must_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--out", "out"], ["--corpus", "--out", "out"], ["--corpus", "x"]):
        try:
            code = cli.main(["data", "prepare", *words])
        except SystemExit as leaving:
            code = leaving.code
        assert code == 2 and list(tmp_path.iterdir()) == []
        assert "--corpus" in (said := capsys.readouterr().err) or "--out" in said


def test_an_unquoted_glob_of_the_shell_is_understood(folder, tmp_path):
    words = f"{sys.executable} -m gpt3jax data prepare --corpus {folder}/00*.txt {folder}/01*.txt"
    done = subprocess.run(
        f"{words} --out {tmp_path}/out {shlex.join(SMALL)}",
        shell=True, env=ENV, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = load_manifest(tmp_path / "out")
    assert made.train.documents + made.validation.documents == 20


def test_two_vocabularies_or_two_kinds_of_fields_are_refused(folder, data, tmp_path, capsys):
    words = ["data", "prepare", "--corpus", str(folder), "--out", str(tmp_path / "out")]
    given = ["--tokenizer", str(data.folder)]
    for more, why in (
        (["--vocabulary", "4000"], "--vocabulary is 4000, but --tokenizer"),
        (["--field", "a", "--pairs", "b", "c"], "--field excludes --pairs"),
    ):
        assert cli.main([*words, *given, *more]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {why}") and err.count("\n") == 1


def command_in(error):
    """The command that a message gives."""
    return shlex.split(re.search(r"gpt3jax (data prepare .*?)(?:\.? *$|, or|, and)", error)[1])


def test_the_commands_in_errors_make_what_was_missing(folder, data, tmp_path, monkeypatch):
    sources = [Source("texts", str(data.folder)), Source("more", str(tmp_path / "more folder"))]
    with pytest.raises(ConfigError) as error:
        loader.identity(Data((Source("texts", str(tmp_path / "one folder")),)), 0, 64)
    words = command_in(str(error.value))
    assert words[2:4] == ["--corpus", "FILES"]
    words[3] = str(folder)
    assert cli.main([*words, "--vocabulary", "300"]) == 0
    assert load_manifest(tmp_path / "one folder").context == 64

    with pytest.raises(ConfigError) as error:
        loader.identity(Data(tuple(sources)), 0, 32)
    words = command_in(str(error.value))
    words[3] = str(folder)
    assert cli.main(words) == 0
    assert loader.identity(Data(tuple(sources)), 0, 32)["context"] == 32


@pytest.mark.parametrize("what", ["context", "tokenizer"])
def test_data_for_another_model_is_made_again_by_the_command_given(folder, tmp_path, what):
    corpus = tmp_path / "a.jsonl"
    texts = [path.read_text() for path in folder.iterdir()]
    corpus.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    made = {
        name: prepare(str(corpus), str(tmp_path / name), context=32, vocabulary=size, field="body")
        for name, size in (("a", 300), ("b", 310))
    }
    sources = [Source(name, str(tmp_path / name)) for name in made]
    data = Data(tuple(sources if what == "tokenizer" else sources[:1]))
    context = 32 if what == "tokenizer" else 64
    with pytest.raises(ConfigError) as error:
        loader.identity(data, 0, context)
    assert cli.main(words := command_in(str(error.value))) == 0
    again = load_manifest(words[words.index("--out") + 1])
    assert (again.context, again.tokenizer) == (context, made["a"].tokenizer)
    assert again.train.bytes + again.validation.bytes == sum(len(text.encode()) for text in texts)


def byte_level(folder, special):
    pieces = [*LETTERS, END_OF_TEXT, *special]
    model = to_json(pieces, [], range(len(LETTERS), len(pieces)))
    (folder / "tokenizer.model").write_bytes(model)
    return folder / "tokenizer.model"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_special_tokens_in_a_corpus_are_named_and_counted(tmp_path, capsys, workers, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr("gpt3jax.data.prepare.prepare.SHARD_BYTES", 20_000)
    rows = ["plain words " * 30] * 90 + ["<|user|>hi<|user|> " * 9] * 12 + [f"a{END_OF_TEXT}b"] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    tokenizer = byte_level(tmp_path, ["<|user|>", "<|unused|>"])
    with pytest.warns(UserWarning, match="special tokens") as found:
        words = ["--corpus", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o")]
        words += ["--tokenizer", str(tokenizer), "--context", "32", "--workers", workers]
        assert cli.main(["data", "prepare", *words]) == 0
    (line,) = [str(each.message) for each in found]
    assert f"<|user|> in 12 documents, {END_OF_TEXT} in 2 documents" in line
    assert "unused" not in line
    made = load_manifest(tmp_path / "o")
    # Bytes are tokens here, so that spelled out means one for each byte.
    assert made.train.tokens + made.validation.tokens == sum(len(row) + 1 for row in rows)


def test_an_import_says_what_becomes_of_special_tokens(tmp_path):
    pytest.importorskip("tokenizers")
    model = byte_level(tmp_path, ["<|user|>", "<|assistant|>"]).rename(tmp_path / "tokenizer.json")
    with pytest.warns(UserWarning, match=r"special tokens \(<\|user\|>, <\|assistant\|>\)"):
        read_tokenizer(tmp_path)
    assert model.exists()


def test_shards_name_special_tokens_too(tmp_path, data):
    (tmp_path / "a.txt").write_text(f"window {END_OF_TEXT} token\n" * 900)
    words = ["data", "prepare", "--corpus", str(tmp_path / "a.txt"), "--out", str(tmp_path / "o"),
             "--tokenizer", str(data.folder), "--context", "32", "--workers", "1"]  # fmt: skip
    for shard in ("0/2", "1/2"):
        with pytest.warns(UserWarning, match=re.escape(f"{END_OF_TEXT} in 2 documents")):
            assert cli.main([*words, "--shard", shard]) == 0


PROGRAM = """
import sys, time
from gpt3jax import cli
import gpt3jax.data.prepare.prepare as p
write = p._write
def slow(*arguments):
    print("begun", flush=True)
    time.sleep(float(sys.argv[1]))
    write(*arguments)
p._write = slow
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture
def start(folder, tmp_path):
    """Start `data prepare` in a process that waits before it writes."""

    def run(wait):
        words = ["data", "prepare", "--corpus", folder, "--out", tmp_path / "out", *SMALL]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, [wait, *words])],
            env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


def test_a_second_process_at_one_folder_is_refused_in_a_line(start, tmp_path):
    first = start(6)
    assert first.stdout.readline() == "begun\n"
    second = start(0)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 2 and "begun" not in out
    assert err.startswith(
        f"error: --out {tmp_path / 'out'} is being written by process {first.pid}"
    )
    assert err.count("\n") == 1
    assert "error" not in first.communicate(timeout=60)[1] and first.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_many_that_begin_at_once_one_makes_the_folder(start, tmp_path):
    running = [start(2) for _ in range(4)]
    ended = [(each.communicate(timeout=100), each.returncode) for each in running]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2], ended
    assert all(err.startswith("error: --out ") for (_, err), code in ended if code == 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_process_blocks_nobody(start, tmp_path):
    first = start(60)
    assert first.stdout.readline() == "begun\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start(0)
    assert "error" not in second.communicate(timeout=60)[1] and second.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_that_begin_the_second_waits_until_the_first_has_its_lock(tmp_path):
    parent = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(parent, fcntl.LOCK_EX)  # As a process that is about to make its folder.
    ended = threading.Event()

    def run():
        with atomic_folder(tmp_path / "out", is_only=True):
            ended.set()

    second = threading.Thread(target=run)
    second.start()
    assert not ended.wait(0.5) and list(tmp_path.iterdir()) == []
    os.close(parent)
    assert ended.wait(30)
    second.join()


def test_a_process_id_that_another_has_now_blocks_nobody(tmp_path):
    """Of a killed process: its id may be given again, to one that lives long."""
    with atomic_folder(tmp_path / "out") as folder:
        name = folder.name
    (tmp_path / "out").rmdir()
    left = tmp_path / name.replace(str(os.getpid()), "1")
    left.mkdir()
    with atomic_folder(tmp_path / "out", is_only=True):
        assert not left.exists()


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    with (
        pytest.raises(ConfigError, match="was written by another process in the meantime"),
        atomic_folder(tmp_path / "out", is_only=True),
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/thesis.tex").read_text() == "x"
