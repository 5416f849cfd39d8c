"""The same ids for every text, whoever reads the tokenizer."""

import argparse
import inspect
import json
import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt3jax.data.byte_level import END_OF_TEXT, LETTERS, to_json
from gpt3jax.data.tokenizer import StreamDecoder, Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.interchange.tokenizer_files import AWKWARD, read_tokenizer, write_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'gpt3jax[huggingface]'")

TEXTS = [
    "def f(x):\n    return x + 1\n\n",
    "the loss of the model, and the model's loss\r\n",
    "======== aaaaaaaa  \t日本語 été\n",
] * 40 + [inspect.getsource(module) for module in (argparse, textwrap)]
SENTENCE_PIECE = Tokenizer(train_tokenizer(TEXTS, 900))


def byte_level():
    """GPT-2's kind, trained by the library on the same texts."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, 800, special_tokens=[END_OF_TEXT], show_progress=False)
    return trained


def parts(trained):
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [tuple(pair) for pair in model["merges"]], [0]


BYTE_LEVEL = Tokenizer(to_json(*parts(byte_level())))
SIZE = BYTE_LEVEL.vocabulary
texts = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=20), max_size=8).map("".join)
like_the_corpus = st.text("defturn =-+_()x1\n\t'ls aé日▁<|>", max_size=60)


def written(folder, tokenizer):
    write_tokenizer(folder, tokenizer, 48)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # As tokenizer_config.json asks transformers to.
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return [
        (ours, written(tmp_path_factory.mktemp("tokenizer"), ours))
        for ours in (SENTENCE_PIECE, BYTE_LEVEL)
    ]


@settings(max_examples=400, deadline=None)
@given(text=texts | like_the_corpus)
@example(text="".join(AWKWARD))
@example(text="".join(TEXTS))
def test_the_library_reads_ours_with_the_same_ids(libraries, text):
    for ours, theirs in libraries:
        ids = ours.encode(text)
        assert theirs.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids) == text
        assert ours.end_of_text not in ids


@settings(max_examples=200, deadline=None)
@given(texts | like_the_corpus)
def test_gpt2s_kind_gives_every_text_back(text):
    """And what the library that trained it gives, where no special token is typed."""
    ids = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.decode(ids) == text
    assert b"".join(map(BYTE_LEVEL.token_bytes, ids)) == text.encode()
    stream = StreamDecoder(BYTE_LEVEL)
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_gpt2s_kind_is_known_by_its_content(tmp_path):
    BYTE_LEVEL.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model", BYTE_LEVEL.hash)
    assert loaded.is_byte_level and not SENTENCE_PIECE.is_byte_level
    assert (loaded.vocabulary, loaded.end_of_text) == (SIZE, 0)
    assert loaded.decode([*loaded.encode("a"), loaded.end_of_text]) == "a"


def test_each_form_of_a_folder_gives_the_same_tokenizer(tmp_path):
    for name in ("ours", "theirs", "pair"):
        (tmp_path / name).mkdir()
    write_tokenizer(tmp_path / "ours", BYTE_LEVEL, 48)
    trained = byte_level()
    trained.save(str(tmp_path / "theirs/tokenizer.json"))
    trained.save_model(str(tmp_path / "pair"))  # vocab.json and merges.txt
    found = {read_tokenizer(tmp_path / name).hash for name in ("ours", "theirs", "pair")}
    assert found == {BYTE_LEVEL.hash}


def test_a_sentencepiece_folder_gives_the_very_model_back(tmp_path):
    write_tokenizer(tmp_path, SENTENCE_PIECE, 48)
    assert read_tokenizer(tmp_path).model == SENTENCE_PIECE.model


def changed(change):
    record = json.loads(BYTE_LEVEL.model)
    change(record)
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "Expecting property name"),
        (b"{}", "model"),
        (changed(lambda r: r.update(normalizer={"type": "NFC"})), "normalizes the text"),
        (changed(lambda r: r.update(pre_tokenizer=None)), "not byte-level"),
        (changed(lambda r: r.update(pre_tokenizer="ByteLevel")), "pre_tokenizer"),
        (changed(lambda r: r["pre_tokenizer"].update(add_prefix_space=True)), "puts a space"),
        (changed(lambda r: r["pre_tokenizer"].update(use_regex=False)), "splits text"),
        (changed(lambda r: r["model"].update(type="Unigram")), "not BPE"),
        (changed(lambda r: r["model"].update(byte_fallback=True)), "fallback"),
        (changed(lambda r: r["model"].update(ignore_merges=True)), "skips merges"),
        (changed(lambda r: r["model"]["vocab"].pop("a")), "are not consecutive from 0"),
        (changed(lambda r: r["model"]["vocab"].update(new=SIZE)), None),
        (changed(lambda r: r["model"]["vocab"].update(new=10**6)), "are not consecutive from 0"),
        (changed(lambda r: r["model"]["vocab"].update({"a b": SIZE})), "not spelled in bytes"),
        (changed(lambda r: r["model"]["merges"].append(["a", "zzz"])), "does not join two tokens"),
        (changed(lambda r: r["model"]["merges"].append(["a"])), "does not join two tokens"),
        (changed(lambda r: r["model"].update(merges=3)), "merges"),
        (changed(lambda r: r["added_tokens"][0].update(special=False)), "is not special"),
        (changed(lambda r: r["added_tokens"][0].update(id=7)), "is not special"),
        (changed(lambda r: r["added_tokens"].append(3)), "is 3"),
        (
            changed(
                lambda r: r.update(post_processor={"type": "TemplateProcessing",
                                                   "special_tokens": {"a": {}}})
            ),
            "puts tokens around",
        ),
    ],
)  # fmt: skip
def test_a_tokenizer_json_that_would_give_other_ids_is_refused(tmp_path, text, words):
    (tmp_path / "tokenizer.json").write_bytes(text)
    if words is None:
        assert read_tokenizer(tmp_path).vocabulary == SIZE + 1
        return
    with pytest.raises(ConfigError, match=words):
        read_tokenizer(tmp_path)


def test_a_vocabulary_without_every_byte_or_an_end_is_refused(tmp_path):
    letters = sorted(LETTERS)
    for pieces, words in ((letters, "has no <"), ([*letters[1:], END_OF_TEXT], "some byte")):
        (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(ConfigError, match=words):
            read_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no tokenizer"):
        read_tokenizer(tmp_path)


def test_a_unigram_model_is_refused(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=320, minloglevel=2,
        model_type="unigram", byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="unigram"):
        write_tokenizer(tmp_path, Tokenizer(model.getvalue()), 48)


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"gpt3jax\[huggingface\]"):
        Tokenizer(BYTE_LEVEL.model)
