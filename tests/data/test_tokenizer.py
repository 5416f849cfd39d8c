"""Tokenizers are lossless, and no text encodes to end-of-text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt3jax.data.tokenizer import StreamDecoder, Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError

TEXTS = [
    "def f(x):\n    return x + 1\n",
    "the loss of the model\r\n",
    "▁ escaped ▅\0 \t日本語",
] * 40
TOKENIZER = Tokenizer(train_tokenizer(TEXTS, 300))
NASTY = (
    "▁", "a▁b ▁", "\u2585", "\0", "\r\n", " ", "  lead", "trail  ", "\n\n\t x",
    "😀👩‍👧", "שלום\u200f", "<|endoftext|>", "<0x41>", "<unk>", " \u2047 ", "\ufeff",
    "\u00a0\u3000", "\U0010ffff", "\ufffd",
)  # fmt: skip
texts = st.lists(st.sampled_from(NASTY) | st.text(max_size=20), max_size=8).map("".join)


@settings(max_examples=500, deadline=None)
@given(texts)
@example("".join(NASTY))
@example("")
def test_decode_gives_every_text_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.end_of_text not in ids and 0 not in ids


@pytest.mark.parametrize("text", [*NASTY, "x" * 1_000_000, "ab▁" * 100_000])
def test_single_hard_texts_come_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_end_of_text_decodes_to_nothing():
    assert TOKENIZER.decode([*TOKENIZER.encode("a"), TOKENIZER.end_of_text]) == "a"


def test_empty_text_has_no_tokens():
    assert TOKENIZER.encode("") == []


def test_lone_surrogate_is_refused_in_words():
    with pytest.raises(ConfigError, match="lone surrogate"):
        TOKENIZER.encode("a\ud800")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocabulary - 1), max_size=30))
@example(TOKENIZER.encode("😀")[:2] + [1] + TOKENIZER.encode("😀")[2:])
def test_stream_joins_to_decode(ids):
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(token) for token in ids] + [stream.flush()]
    assert "".join(pieces) == TOKENIZER.decode(ids)


def test_stream_holds_back_incomplete_characters():
    stream = StreamDecoder(TOKENIZER)
    ids = TOKENIZER.encode("😀")
    assert [stream.push(token) for token in ids] == ["", "", "", "😀"]
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd" == TOKENIZER.decode(ids[:1])


def test_training_is_deterministic_and_saves(tmp_path):
    assert train_tokenizer(TEXTS, 300) == TOKENIZER.model
    TOKENIZER.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert (loaded.hash, loaded.vocabulary) == (TOKENIZER.hash, 300)


def test_small_vocabulary_survives_many_characters():
    many = "".join(map(chr, range(0x4E00, 0x5E00))) * 2
    tokenizer = Tokenizer(train_tokenizer(["hello world, hello words\n" * 50, many], 300))
    assert tokenizer.decode(tokenizer.encode(many)) == many


def test_vocabulary_errors_name_what_works():
    with pytest.raises(ConfigError, match="Use 300 or more"):
        train_tokenizer(TEXTS, 256)
    with pytest.raises(ConfigError, match=r"Use (\d+) or less") as error:
        train_tokenizer(TEXTS, 4000)
    largest = int(str(error.value).split("Use ")[1].split()[0])
    assert Tokenizer(train_tokenizer(TEXTS, largest)).vocabulary == largest
    with pytest.raises(ConfigError, match="Add text"):
        train_tokenizer([], 300)


def test_bad_model_files_and_ids_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Check the path"):
        Tokenizer.load(tmp_path / "none.model")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        Tokenizer(b"no model")
    for token in (-1, 300):
        with pytest.raises(ConfigError, match="not in the tokenizer"):
            TOKENIZER.decode([token])


def test_irreversible_model_is_refused():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=24, minloglevel=2
    )
    with pytest.raises(ConfigError, match="cannot be used"):
        Tokenizer(model.getvalue())
