"""Documents of a corpus and skipped records, and their counts."""

import builtins
import json
import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt3jax.data.corpora import text_files
from gpt3jax.data.corpora.documents import Document, Skipped
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.errors import ConfigError


def read(spec, field="text"):
    """(documents by key, reasons counted)"""
    corpus = open_corpus(str(spec), field)
    items = [*corpus.skipped, *(item for part in corpus.parts for item in corpus.read(part))]
    found = [item for item in items if isinstance(item, Document)]
    documents = {item.key: item for item in found}
    assert len(documents) == len(found), "keys repeat"
    return documents, Counter(item.reason for item in items if isinstance(item, Skipped))


def test_folder_keeps_bytes_and_counts_what_it_leaves_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/crlf.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\0\r\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "binary.bin").write_bytes(b"\0\xff\xfe")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    documents, skipped = read(tmp_path)
    assert documents["sub/crlf.txt"].text == "\ufeffa\r\nb\0\r\n"
    assert documents["latin.txt"] == ("latin.txt", "caf\ufffd", True, "")
    assert skipped == {"binary": 1, "empty": 1, "unreadable": 2, "not a regular file": 1}
    assert len(documents) == 2


def test_unreadable_file_is_counted(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(text_files, "open", refuse, raising=False)
    assert read(tmp_path) == ({}, {"unreadable": 1})


@pytest.mark.parametrize("spec", ["*.txt", "a.txt"])
def test_glob_and_file(tmp_path, spec):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.md").write_text("b")
    documents, _ = read(tmp_path / spec)
    assert [document.text for document in documents.values()] == ["a"]


def test_missing_path_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no files") as error:
        open_corpus(str(tmp_path / "none"))
    assert "\n" not in str(error.value)


def test_one_large_file_is_cut_at_line_ends_and_loses_nothing(tmp_path):
    text = "".join(f"line {i} é\r\n" for i in range(40_000))
    (tmp_path / "input.txt").write_text(text, newline="")
    documents, _ = read(tmp_path / "input.txt")
    assert "".join(document.text for document in documents.values()) == text
    assert len(documents) > 20 and all(item.text.endswith("\n") for item in documents.values())


def test_text_without_line_ends_is_one_document(tmp_path):
    (tmp_path / "input.txt").write_text("x" * 100_000)
    documents, skipped = read(tmp_path / "input.txt")
    assert [len(document.text) for document in documents.values()] == [100_000] and not skipped


def test_jsonl_ranges_cover_each_line_once(tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"t{i}" * (i % 50 + 1)}) for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    whole, _ = read(tmp_path / "a.jsonl")
    monkeypatch.setattr("gpt3jax.data.corpora.open.PART_BYTES", 777)
    assert len(open_corpus(str(tmp_path / "a.jsonl")).parts) > 20
    assert read(tmp_path / "a.jsonl")[0] == whole and len(whole) == 500


def test_jsonl_lines_that_fail_are_counted(tmp_path):
    good = b'{"text": "ok\\r\\n"}\n{"text": "caf\xe9"}\n{"text": "\\ud83d\\ude00 \\ud800"}\n'
    bad = b'{"text": \n\n{"body": "x"}\n{"text": 3}\n[1]\n{"text": ""}\n' + b"[" * 100_000 + b"\n"
    (tmp_path / "a.jsonl").write_bytes(good + bad)
    documents, skipped = read(tmp_path / "a.jsonl")
    texts = [document.text for document in documents.values()]
    assert texts[0] == "ok\r\n" and texts[1].startswith("caf\ufffd")
    assert texts[2].startswith("😀 \ufffd")
    assert [document.replaced for document in documents.values()] == [False, True, True]
    assert skipped == {"malformed JSON": 2, "empty": 2, "no text in field 'text'": 3}


def test_parquet_row_groups_and_fields(tmp_path):
    table = pa.table({"body": ["a", None, "", "é\0"] * 3, "n": range(12)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    documents, skipped = read(tmp_path / "a.parquet", "body")
    assert [document.text for document in documents.values()] == ["a", "é\0"] * 3
    assert skipped == {"empty": 6} and len(open_corpus(str(tmp_path), "body").parts) == 3
    with pytest.raises(ConfigError, match="it has body, n"):
        open_corpus(str(tmp_path), "text")
    with pytest.raises(ConfigError, match="is int64"):
        open_corpus(str(tmp_path), "n")


def test_damaged_parquet_is_counted(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert read(tmp_path) == ({}, {"unreadable": 1})


def test_huggingface_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'gpt3jax\[hf\]'"):
        open_corpus("hf:roneneldan/TinyStories")


def test_huggingface_reads_rows(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"text": f"story {i}"} for i in range(50)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents, _ = read(f"hf:{tmp_path}")
    assert [document.text for document in documents.values()] == [row["text"] for row in rows]
    with pytest.raises(ConfigError, match="it has text"):
        open_corpus(f"hf:{tmp_path}", "body")


def test_python_library_is_megabytes_of_code_and_documentation():
    documents, skipped = read("python-library")
    assert 8e6 < sum(len(document.text) for document in documents.values()) < 13e6
    assert {"argparse.py", "LICENSE.txt", "pydoc_data/topics.py:assert"} <= set(documents)
    tests = ("test", "tests", "idle_test", "site-packages")
    assert not [key for key in documents if set(key.split("/")).intersection(tests)]
    tables = {"html/entities.py", "encodings/cp437.py", "stringprep.py", "pydoc_data/topics.py"}
    assert not tables.intersection(documents) and skipped["table of data"] > 50
