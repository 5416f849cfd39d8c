"""Text to token ids and back, exactly: SentencePiece BPE with byte fallback.

A run that was imported may have GPT-2's tokenizer instead (byte_level.py).

For every text t that is valid UTF-8, `decode(encode(t)) == t`.
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
"""Text a tokenizer is trained on, at most."""
SMALLEST_VOCABULARY = 300
"""256 bytes, end-of-text, unknown, and something left to merge."""
SPECIAL_PIECES = 258
SENTENCE = 4096
"""Characters of a training sentence; long, so that merges see line ends and indentation."""

# Its own complaints come beside the error that it raises.
sentencepiece.set_min_log_level(3)

# SentencePiece writes a space as U+2581 and keeps U+2585 for itself.
_SPACE = "\u2581"
_RESERVED = str.maketrans({"\0": " ", _SPACE: " ", "\u2585": " "})
_PROBE = "  Az\r\n\t \0\u00e9\u2581\U0001f600 "


class Tokenizer:
    """A tokenizer made from the bytes of its file, kept in `model`; they say of which kind it is.

    Raises:
      ConfigError: the bytes are no such model, or it does not give every text back.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        kind = ByteLevel if self.is_byte_level else _SentencePiece
        try:
            self._spelling = kind(model)
        except (RuntimeError, ValueError) as error:  # Pieces need not be UTF-8.
            why = f"; as GPT-2's, {error}" if self.is_byte_level else ""
            raise ConfigError(
                f"the tokenizer cannot be read: its bytes are not a SentencePiece model{why}. "
                "Give a tokenizer.model"
            ) from error
        self._bytes = self._spelling.token_bytes
        if self.end_of_text < 0 or self.decode(self.encode(_PROBE)) != _PROBE:
            raise ConfigError(
                "the tokenizer does not suit: it has no end-of-text or does not give text back "
                "exactly (byte fallback, identity normalisation). Train one: leave out --tokenizer"
            )

    @staticmethod
    def load(path: str | os.PathLike[str], known: str | None = None) -> Tokenizer:
        """Read a tokenizer's file.

        Args:
          path: the file: a SentencePiece model, or a tokenizer.json of GPT-2's kind.
          known: its hash, where it is known; another file is not even parsed.

        Raises:
          ConfigError: there is none, it is another, or it is not reversible.
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
        """Whether it is GPT-2's kind, rather than SentencePiece."""
        return self.model[:1] == b"{"

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return len(self._bytes)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document. No text encodes to it; it decodes to nothing."""
        return self._spelling.end_of_text

    @property
    def special(self) -> tuple[str, ...]:
        """How the tokens that no text encodes to are written: `<|endoftext|>`, `<|user|>`."""
        return self._spelling.special

    @property
    def hash(self) -> str:
        """Sixteen hex digits of the model file's SHA-256."""
        return _hash(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text.

        Raises:
          ConfigError: the text has a lone surrogate, so it is not Unicode text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text cannot be encoded: character {error.start} is a lone surrogate. "
                'Decode its bytes with errors="replace"'
            ) from error
        return self._spelling.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
          ConfigError: an id is outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of text that one token stands for: part of a character, or many.

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
    """A SentencePiece model as `Tokenizer` wants it."""

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.token_bytes = tuple(_piece_bytes(self._processor))
        self.end_of_text = self._processor.eos_id()
        controls = filter(self._processor.is_control, range(len(self.token_bytes)))
        self.special = tuple(map(self._processor.id_to_piece, controls))
        self._space = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        # SentencePiece would give a real U+2581 back as a space, so its bytes go around it.
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
    """Text of tokens as they come; what it returns, joined, is `decode` of all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is now certain; an incomplete character is held back."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What was held back, as U+FFFD. The decoder is then as new."""
        held = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return held


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> bytes:
    """Train a BPE tokenizer; the same texts give the same model.

    Args:
      texts: read until `SAMPLE_BYTES` of text; the caller samples.
      vocabulary: ids in all, the 256 bytes, end-of-text and unknown included.

    Returns:
      The SentencePiece model file's bytes.

    Raises:
      ConfigError: the vocabulary is too small, or larger than the text supports.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"--vocabulary is {vocabulary}: bytes and end-of-text alone take {SPECIAL_PIECES}. "
            f"Use {SMALLEST_VOCABULARY} or more"
        )
    sentences = _spell_out_rare(list(_sentences(texts)), (vocabulary - SPECIAL_PIECES) // 2)
    if sentences and not any(" " in sentence for sentence in sentences):
        # A space must have an id: spelled in bytes, it would come back as U+2581.
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
        enough = largest and int(largest[1]) >= SMALLEST_VOCABULARY
        fix = f"Use {largest[1]} or less" if enough else "Add text"
        raise ConfigError(
            f"--vocabulary {vocabulary} does not fit the text: it has too few words. {fix}"
        ) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Stretches of text to train on, `SAMPLE_BYTES` in all."""
    left = SAMPLE_BYTES
    for text in texts:
        for start in range(0, len(text), SENTENCE):
            if left <= 0:
                return
            sentence = text[start : start + SENTENCE].translate(_RESERVED)
            left -= len(sentence.encode())
            yield sentence


def _spell_out_rare(sentences: list[str], most: int) -> list[str]:
    """Blank all but the characters that make up 99.95% of the text, at most `most` of them.

    The others get no id and are spelled in bytes, or a Chinese text would fill a
    small vocabulary with characters. SentencePiece's own coverage stops at 98%.
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
