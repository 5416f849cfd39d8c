"""A lossless tokenizer: SentencePiece BPE with byte fallback.

For every valid UTF-8 text t, `decode(encode(t)) == t`. An imported run may have
GPT-2's tokenizer instead (byte_level.py).
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from gpt3jax import serde
from gpt3jax.data.byte_level import END_OF_TEXT, ByteLevel
from gpt3jax.errors import ConfigError

SAMPLE_BYTES = 8 << 20
"""Maximum text that a tokenizer is trained on."""
SMALLEST_VOCABULARY = 300
"""256 bytes, end-of-text, unknown, and some merges."""
SPECIAL_PIECES = 258
SENTENCE = 4096
"""Characters of a training sentence; long, so that merges can include newlines and indentation."""

# Its log messages would duplicate the exceptions that it raises.
sentencepiece.set_min_log_level(3)

# SentencePiece writes a space as U+2581 and reserves U+2585.
_SPACE = "\u2581"
_RESERVED = str.maketrans({"\0": " ", _SPACE: " ", "\u2585": " "})
_PROBE = "  Az\r\n\t \0\u00e9\u2581\U0001f600 "


class Tokenizer:
    """A tokenizer from the bytes of its file, `model`, which determine its kind.

    Raises:
      ConfigError: the bytes are not a tokenizer, or it is not lossless.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        kind = ByteLevel if self.is_byte_level else _SentencePiece
        try:
            self._codec = kind(model)
        except (RuntimeError, ValueError) as error:  # ValueError: pieces that are not UTF-8.
            why = f"; as GPT-2's, {error}" if self.is_byte_level else ""
            raise ConfigError(
                f"the tokenizer cannot be read: its bytes are not a SentencePiece model{why}. "
                "Give a tokenizer.model"
            ) from error
        self._bytes: tuple[bytes, ...] = self._codec.token_bytes
        if self.end_of_text < 0 or self.decode(self.encode(_PROBE)) != _PROBE:
            raise ConfigError(
                "the tokenizer cannot be used: it has no end-of-text or is not lossless (byte "
                "fallback, identity normalisation). Train one: leave out --tokenizer"
            )

    @staticmethod
    def load(path: str | os.PathLike[str], known: str | None = None) -> Tokenizer:
        """Read a tokenizer file.

        Args:
          path: a SentencePiece model, or a tokenizer.json of GPT-2's kind.
          known: the expected hash, if known; a file with another hash is not parsed.

        Raises:
          ConfigError: the file cannot be read, has another hash, or is not lossless.
        """
        try:
            model = serde.read_bytes(Path(path))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"tokenizer {path} cannot be read: {why}. Check the path") from error
        if known is not None and _hash(model) != known:
            raise ConfigError(
                f"{path} is not the tokenizer that was used: its hash is {_hash(model)}, not "
                f"{known}. Restore it from the prepared data"
            )
        return Tokenizer(model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file."""
        Path(path).write_bytes(self.model)

    @property
    def is_byte_level(self) -> bool:
        """Whether this is GPT-2's kind of tokenizer rather than SentencePiece."""
        return self.model[:1] == b"{"

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return len(self._bytes)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document. No text encodes to it; it decodes to ""."""
        return self._codec.end_of_text

    @property
    def special(self) -> tuple[str, ...]:
        """The names of special tokens, to which no text encodes: `<|endoftext|>`, `<|user|>`."""
        return self._codec.special

    @property
    def hash(self) -> str:
        """Sixteen hex digits of the model file's SHA-256."""
        return _hash(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text.

        Raises:
          ConfigError: the text has a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text cannot be encoded: character {error.start} is a lone surrogate. "
                'Decode its bytes with errors="replace"'
            ) from error
        return self._codec.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD.

        Raises:
          ConfigError: an id is outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of text of one token, which may begin or end inside a character.

        Raises:
          ConfigError: the id is outside the vocabulary.
        """
        if not 0 <= token < self.vocabulary:
            raise ConfigError(
                f"token id {token} is not in the tokenizer: its vocabulary is {self.vocabulary}. "
                "Use the tokenizer that made the ids"
            )
        return self._bytes[token]


class _SentencePiece:
    """A SentencePiece model, with the interface of `ByteLevel`."""

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.token_bytes = tuple(_piece_bytes(self._processor))
        self.end_of_text = self._processor.eos_id()
        controls = filter(self._processor.is_control, range(len(self.token_bytes)))
        self.special = tuple(map(self._processor.id_to_piece, controls))
        self._space = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        # SentencePiece would decode a literal U+2581 to a space, so it is encoded as bytes.
        first, *others = text.split(_SPACE)
        ids = self._processor.encode(first)
        for segment in others:
            ids += self._space
            ids += self._processor.encode(segment)
        return ids


def _hash(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()[:16]


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor) -> Iterator[bytes]:
    for token in range(processor.get_piece_size()):
        piece = processor.id_to_piece(token)
        if processor.is_byte(token):
            yield bytes([int(piece[3:5], 16)])
        elif processor.is_control(token):
            yield b""
        else:
            yield piece.replace(_SPACE, " ").encode()


class StreamDecoder:
    """Incremental decoder: the concatenation of its results is `decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The new text; an incomplete character is buffered."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """The buffered incomplete character as U+FFFD; resets the decoder."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> bytes:
    """Train a BPE tokenizer deterministically.

    Args:
      texts: the sample to train on; the first `SAMPLE_BYTES` are read.
      vocabulary: number of ids, including the 256 bytes, end-of-text and unknown.

    Returns:
      The bytes of a SentencePiece model file.

    Raises:
      ConfigError: the vocabulary is too small, or too large for the text.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"--vocabulary is {vocabulary}: bytes and end-of-text alone take {SPECIAL_PIECES}. "
            f"Use {SMALLEST_VOCABULARY} or more"
        )
    sentences = _spell_out_rare(list(_sentences(texts)), (vocabulary - SPECIAL_PIECES) // 2)
    if sentences and not any(" " in sentence for sentence in sentences):
        # A space must have an id: encoded as bytes, it would decode to U+2581.
        sentences.append(" ")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=1.0,
            max_sentence_length=4 * SENTENCE,
            unk_id=0,
            bos_id=-1,
            eos_id=1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            minloglevel=2,
        )
    except RuntimeError as error:
        largest = re.search(r"value <= (\d+)", str(error))
        if sentences and not largest:
            raise
        limit = int(largest[1]) if largest else 0
        fix = f"Use {limit} or less" if limit >= SMALLEST_VOCABULARY else "Add text"
        raise ConfigError(
            f"--vocabulary {vocabulary} does not fit the text: it has too few words. {fix}"
        ) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of text to train on, `SAMPLE_BYTES` in total."""
    left = SAMPLE_BYTES
    for text in texts:
        for start in range(0, len(text), SENTENCE):
            if left <= 0:
                return
            sentence = text[start : start + SENTENCE].translate(_RESERVED)
            left -= len(sentence.encode())
            yield sentence


def _spell_out_rare(sentences: list[str], most: int) -> list[str]:
    """Replace rare characters by spaces, leaving at most `most` that cover 99.95% of the text.

    Rare characters get no id and are encoded as bytes; otherwise Chinese characters
    would fill a small vocabulary. SentencePiece's own minimum coverage is 98%.
    """
    counts = Counter()
    for sentence in sentences:
        counts.update(sentence)
    blank, covered = {}, 0
    for rank, (character, count) in enumerate(counts.most_common()):
        if rank >= most or covered > 0.9995 * counts.total():
            blank[ord(character)] = " "
        covered += count
    return [sentence.translate(blank) for sentence in sentences]
