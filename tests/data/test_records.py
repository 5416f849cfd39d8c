"""Records in files of every format: only their text fields are read."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt3jax import cli
from gpt3jax.data.corpora.documents import Document
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.evals.tasks.files import read_jsonl

ROWS = [{"id": i, "body": f"text {i} caf\u00e9", "meta": {"body": "inner"}} for i in range(40)]
TEXTS = [row["body"] for row in ROWS]
LINES = "\n".join(map(json.dumps, ROWS))
BOM = b"\xef\xbb\xbf"


def read(spec, *fields):
    """(texts, reasons counted)"""
    corpus = open_corpus(spec if isinstance(spec, list) else str(spec), *fields)
    items = [*corpus.skipped, *(item for part in corpus.parts for item in corpus.read(part))]
    texts = [item.text for item in items if isinstance(item, Document)]
    return texts, Counter(item.reason for item in items if not isinstance(item, Document))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.Ndjson", "a.json", "a.JSON"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_json_lines_are_records_whatever_their_ending(tmp_path, name, mark):
    (tmp_path / name).write_bytes(mark + LINES.encode())
    assert read(tmp_path / name, "body") == (TEXTS, {})
    assert read(tmp_path, "body") == (TEXTS, {})


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_json_file_may_be_an_array_or_one_object(tmp_path, mark):
    for name, value in (("flat", ROWS), ("one", ROWS[0])):
        for indent in (None, 2):
            (tmp_path / f"{name}.json").write_bytes(
                mark + json.dumps(value, indent=indent).encode()
            )
            expected = TEXTS if name == "flat" else TEXTS[:1]
            assert read(tmp_path / f"{name}.json", "body") == (expected, {})


def test_parquet_is_found_by_its_ending_in_capitals(tmp_path):
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.PARQUET")
    assert read(tmp_path, "body") == (TEXTS, {})


def test_a_byte_order_mark_where_files_were_joined_drops_no_row(tmp_path):
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "a.jsonl").write_bytes(b"".join(BOM + line for line in lines))
    assert read(tmp_path, "body") == (TEXTS, {})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", LINES, r"a\.json .*40 no text in field 'nosuch' \(fields: id, body, meta\)"),
        ("a.ndjson", LINES, "no text in field 'nosuch'"),
        ("a.json", json.dumps(ROWS), "no text in field 'nosuch'"),
        ("a.jsonl", '{"nosuch": 3}\n{"nosuch": 4}', "2 no text in field .*it is a number"),
        ("a.jsonl", '{"nosuch": {"text": "x"}}', "it is an object"),
        ("a.jsonl", '"text"\n["text"]', "not an object"),
        ("a.json", "{]", "neither JSON lines nor a JSON array or object"),
        ("a.json", "plain text", "neither JSON lines nor"),
        ("a.txt", "plain text", "applies to no file of corpus"),
        ("a.jsonlines", LINES, "has JSON but would be read as text"),
        ("a", BOM.decode() + json.dumps(ROWS, indent=1), "has JSON but would be read as text"),
    ],
)
def test_a_field_that_is_not_there_is_refused_and_json_is_never_text(tmp_path, name, content, said):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    (tmp_path / "in/good.txt").write_text("some text\n" * 1000)
    for field in ("nosuch", "meta.body"):
        expected = said.replace("nosuch", field) if '"nosuch"' not in content else "no text in"
        with pytest.raises(ConfigError, match=expected if field != "nosuch" else said) as error:
            prepare(str(tmp_path / "in"), str(tmp_path / "out"), context=8, field=field)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_fields_for_what_has_no_records_are_refused(tmp_path):
    (tmp_path / "made.py").write_text("def documents():\n    yield 'text ' * 999\n")
    for corpus in ("python-library", f"generated:{tmp_path / 'made.py'}"):
        with pytest.raises(ConfigError, match="--field body applies to no file of corpus"):
            prepare(corpus, str(tmp_path / "out"), context=8, field="body")


def test_a_name_that_is_given_twice_and_null_are_counted(tmp_path):
    lines = [*map(json.dumps, ROWS), '{"body": "a", "body": "b"}', '{"body": null}', '{"id": 3}',
             '{"id": 1, "id": 2, "body": "c"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts, skipped = read(tmp_path / "a.jsonl", "body")
    assert texts == [*TEXTS, "c"]
    assert skipped == {"field 'body' twice": 1, "no text in field 'body'": 2}
    (tmp_path / "null.jsonl").write_text('{"body": null}\n' * 3)
    assert read(tmp_path / "null.jsonl", "body")[1] == {"no text in field 'body'": 3}


def test_json_without_a_field_is_text_only_if_its_records_have_none(tmp_path, recwarn):
    (tmp_path / "package.json").write_text('{"name": "x"}\n')
    (tmp_path / "list.json").write_text('[{"name": "x"}]')
    texts, _ = read(tmp_path)
    assert sorted(texts) == ['[{"name": "x"}]', '{"name": "x"}\n']
    assert "2 files ending in .json read as text" in str(recwarn.pop().message)
    (tmp_path / "b").mkdir()
    for name, content in (("a", '[{"text": "one"}]'), ("b", '{"text": "two"}\n{"text": "three"}')):
        (tmp_path / f"b/{name}.json").write_text(content)
    assert read(tmp_path / "b") == (["one", "two", "three"], {})
    assert not recwarn.list


def test_what_a_folder_or_glob_leaves_out_is_counted(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/a.txt").write_text("a")
    (tmp_path / "in/link").symlink_to("sub")
    (tmp_path / "in/b.jsonl.gz").write_bytes(b"\x1f\x8b plain")
    (tmp_path / "in/empty.jsonl").write_text("")
    (tmp_path / "in/empty.json").write_text("")
    expected = {"link to a folder": 1, "compressed": 1, "empty": 2}
    assert read(tmp_path / "in") == (["a"], expected)
    assert read(f"{tmp_path}/in/*") == ([], expected | {"folder": 1})
    assert read(f"{tmp_path}/in/**")[0] == ["a", "a"], "the link is followed by a glob"


def test_several_paths_and_globs_are_one_corpus_and_each_file_is_read_once(tmp_path):
    for name in ("docs/a.txt", "docs/b.txt", "more/a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in ("docs/a.txt", "docs/b.txt", "more/a.txt", "c.txt")]
    corpus = open_corpus([*files, f"{tmp_path}/docs/*.txt", f"{tmp_path}/more"])
    found = [item for part in corpus.parts for item in corpus.read(part)]
    assert sorted(item.text for item in found) == [
        "c.txt",
        "docs/a.txt",
        "docs/b.txt",
        "more/a.txt",
    ]
    assert len({item.key for item in found}) == 4
    with pytest.raises(ConfigError, match=r"none\*.* has no files"):
        open_corpus([*files, f"{tmp_path}/none*"])
    with pytest.raises(
        ConfigError, match="python-library is no file or folder: it cannot be combined"
    ):
        open_corpus([*files, "python-library"])


def test_a_shell_and_a_quoted_glob_make_the_same_windows(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    names = sorted(f"{folder.name}/{path.name}" for path in folder.iterdir())
    words, made = ["--context", "32", "--vocabulary", "300", "--workers", "1"], []
    for out, corpus in (("shell", names), ("glob", [f"{folder.name}/*.txt"]),
                        ("two", [f"{folder.name}/0*.txt", f"{folder.name}/1*.txt"])):  # fmt: skip
        where = str(tmp_path / out)
        assert cli.main(["data", "prepare", "--corpus", *corpus, "--out", where, *words]) == 0
        files = {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
        record = json.loads(files.pop("manifest.json"))
        assert isinstance(record["corpus"], str) and record["version"] == 1
        made.append(files)
    assert made[0] == made[1] == made[2]


def test_pairs_are_read_from_every_ending(tmp_path, data):
    rows = [{"q": f"{i}:", "a": f" {i}\n"} for i in range(50)]
    forms = {"a.ndjson": "\n".join(map(json.dumps, rows)), "b.json": json.dumps(rows)}
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        made = prepare(
            str(tmp_path / name), str(tmp_path / f"{name}.out"), context=32, workers=1,
            tokenizer=str(data.folder), pairs=("q", "a"), validation_fraction=0,
        )  # fmt: skip
        assert made.train.documents == 50 and made.train.bytes == sum(len(row["a"]) for row in rows)
        tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
        assert made.train.tokens == sum(len(tokenizer.encode(row["a"])) + 1 for row in rows)


def test_a_task_file_may_begin_with_a_byte_order_mark(tmp_path):
    line = b'{"context": "Q:", "completion": " A"}\n'
    (tmp_path / "t.jsonl").write_bytes(BOM + line * 2)
    (tmp_path / "u.jsonl").write_bytes(line * 2)
    assert read_jsonl(tmp_path / "t.jsonl").examples == read_jsonl(tmp_path / "u.jsonl").examples
