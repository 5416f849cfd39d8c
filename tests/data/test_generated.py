"""Generated corpora: deterministic for any number of workers; errors name the file."""

import pytest

from gpt3jax.data.corpora.documents import Document
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.data.prepare.census import bucket
from gpt3jax.data.prepare.prepare import prepare, verify
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError

SMALL = {"context": 32, "vocabulary": 300}

NUMBERED = """
def documents():
    for number in range(200):
        yield f"file{number:03d}\\n" + "a window of tokens, a layer of values; " * (number % 9 + 1)
"""


def write(tmp_path, text):
    (tmp_path / "made.py").write_text(text)
    return f"generated:{tmp_path / 'made.py'}"


def read(spec):
    corpus = open_corpus(spec)
    return [item for part in corpus.parts for item in corpus.read(part)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_are_numbered_and_whole(tmp_path):
    spec = write(tmp_path, NUMBERED)
    (part,) = open_corpus(spec).parts
    found = read(spec)
    assert [each.key for each in found] == [f"made.py:{number}" for number in range(200)]
    assert all(each.text.startswith(f"file{number:03d}\n") for number, each in enumerate(found))
    assert part.bytes == sum(len(each.text) for each in found)


def test_what_is_no_document_is_counted(tmp_path):
    spec = write(tmp_path, "def documents():\n    return ['a', '', 'caf\\udce9']\n")
    first, empty, replaced = read(spec)
    assert first == Document("made.py:0", "a", False) and empty.reason == "empty"
    assert replaced.replaced and replaced.text.startswith("caf\ufffd")


def test_prepared_bytes_are_the_same_with_more_workers_and_again(tmp_path):
    spec = write(tmp_path, NUMBERED)
    one = prepare(spec, str(tmp_path / "one"), **SMALL, validation_fraction=0.1, workers=1)
    prepare(spec, str(tmp_path / "two"), **SMALL, validation_fraction=0.1, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert prepare(spec, str(tmp_path / "one"), **SMALL, validation_fraction=0.1) == one
    assert verify(tmp_path / "one") == one and one.corpus == spec


def test_whole_documents_are_held_out_by_their_numbers(tmp_path):
    spec = write(tmp_path, NUMBERED)
    data = prepare(spec, str(tmp_path / "data"), **SMALL, validation_fraction=0.1, workers=1)
    assert data.validation.documents + data.train.documents == 200
    assert 10 < data.validation.documents < 40
    by_bucket = sorted(range(200), key=lambda number: bucket(f"made.py:{number}"))
    texts = {number: each.text for number, each in enumerate(read(spec))}
    held_out = [texts[number] for number in by_bucket[: data.validation.documents]]
    tokenizer = Tokenizer.load(data.folder / "tokenizer.model")
    assert data.validation.bytes == sum(map(len, held_out))
    assert data.validation.tokens == sum(len(tokenizer.encode(text)) + 1 for text in held_out)


def test_a_file_that_changed_is_other_data(tmp_path):
    spec = write(tmp_path, NUMBERED)
    prepare(spec, str(tmp_path / "data"), **SMALL, workers=1)
    write(tmp_path, NUMBERED.replace("layer of", "layer in"))
    with pytest.raises(ConfigError, match="made differently: the corpus has changed"):
        prepare(spec, str(tmp_path / "data"), **SMALL, workers=1)


def test_a_file_that_gives_other_text_each_time_is_found_out(tmp_path):
    text = "import random\ndef documents():\n    for _ in range(99):\n        "
    spec = write(tmp_path, text + "yield 'a window of tokens ' * random.randint(1, 99)\n")
    with pytest.raises(ConfigError, match="other text the second time: it must"):
        prepare(spec, str(tmp_path / "data"), **SMALL, workers=1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", r"made\.py has no function documents"),
        ("import no_such_module_anywhere\n", r"made\.py:1: ModuleNotFoundError"),
        ("def documents(:\n", r"made\.py:1: SyntaxError"),
        ("def documents():\n    yield 'a'\n    1 / 0\n", r"made\.py:3: ZeroDivisionError"),
        ("def documents():\n    yield 'a'\n    yield 3\n", "yielded int: a document is text"),
        ("def documents():\n    yield 'a'\n    yield None\n", "yielded NoneType"),
        ("def documents():\n    yield b'a'\n", "yielded bytes"),
        ("def documents():\n    return 'text'\n", "returned str: documents are many"),
        ("def documents():\n    return 3\n", "returned int: documents are many"),
        ("def documents():\n    return []\n", "yields no text"),
        ("def documents():\n    yield ''\n", "yields no text"),
        ("def documents():\n    yield 'a'\n    raise SystemExit(3)\n", r"made\.py:3: SystemExit"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as error:
        open_corpus(write(tmp_path, text))
    assert "\n" not in str(error.value) and "made.py" in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no documents file .*none.py"):
        open_corpus(f"generated:{tmp_path / 'none.py'}")


def test_a_corpus_that_is_left_half_way_ends_quietly(tmp_path):
    corpus = open_corpus(write(tmp_path, NUMBERED))
    documents = corpus.read(corpus.parts[0])
    next(documents)
    documents.close()
