"""Writing and reading tokenizers in the formats of transformers, with the same ids for any text.

Our tokenizer is written as a tokenizer.json for the library `tokenizers`, with the SentencePiece
model itself. transformers' own conversion (LlamaTokenizer) decodes U+2581 as a space and encodes
a typed end-of-text marker as the special token. This conversion spells pieces with real spaces
instead, so that all characters round-trip. The only difference is in decoding bytes that are not
UTF-8, which no text encodes to: `tokenizers` also replaces the adjacent byte tokens with U+FFFD.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import sentencepiece

from gpt3jax import serde
from gpt3jax.data import byte_level
from gpt3jax.data.byte_level import END_OF_TEXT
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count

SENTENCE_PIECE = "tokenizer.model"
FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
_SPACE = "\u2581"
"""SentencePiece's symbol for a space."""

AWKWARD = (
    "", " ", "  two  spaces ", "\n\n\t x", "\r\n", "\0", "\u2581", "a\u2581b \u2581", "\u2585",
    END_OF_TEXT, f"a{END_OF_TEXT}b", "<0x41>", "<unk>", "\ufeff", "\u00a0\u3000", "\ufffd",
    "\U0010ffff", "\U0001f600\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd\u200f",
    "\u65e5\u672c\u8a9e", "e\u0301", "=" * 77, "a" * 50, " " * 33, "it's we'LL 1234567 x_y(z)",
)  # fmt: skip
"""Texts of edge cases on which tokenizers commonly differ."""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the files that AutoTokenizer loads.

    Raises:
      ConfigError: the tokenizer is a SentencePiece model but not of type BPE.
    """
    if tokenizer.is_byte_level:
        fast, unknown = tokenizer.model, None
    else:
        (folder / SENTENCE_PIECE).write_bytes(tokenizer.model)
        fast, unknown = _fast(tokenizer.model), "<unk>"
    (folder / FAST).write_bytes(fast)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        # A typed end-of-text marker must not end the document.
        "split_special_tokens": True,
        "model_max_length": context,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _fast(model: bytes) -> bytes:
    """The contents of tokenizer.json for a SentencePiece BPE model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids: dict[str, int] = {}
    ranks: dict[str, float] = {}
    for i in range(processor.get_piece_size()):
        piece = processor.id_to_piece(i)
        if processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i):
            ids[piece] = i
        else:
            piece = piece.replace(_SPACE, " ")
            ids[piece], ranks[piece] = i, -processor.get_score(i)
    if len(ids) < processor.get_piece_size() or any(rank % 1 for rank in ranks.values()):
        raise ConfigError(
            "the tokenizer is not a SentencePiece BPE model as trained by gpt3jax (unigram?): it "
            "cannot be exported. Train one: gpt3jax data prepare --corpus FILES --out data/own"
        )
    halves = (
        (rank, ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    end = {"id": processor.eos_id(), "content": processor.id_to_piece(processor.eos_id())}
    record = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{**end, **flags, "special": True}],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": processor.id_to_piece(0),
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": ids,
            "merges": [[left, right] for *_, left, right in sorted(halves)],
        },
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder: SentencePiece, or GPT-2's in either of its formats.

    Raises:
      ConfigError: there is no tokenizer, or its ids would not be reproduced exactly.
    """
    for name, read in (
        (SENTENCE_PIECE, lambda file: serde.read_bytes(file)),
        (FAST, lambda file: _to_json(*byte_level.from_json(serde.read_bytes(file)))),
        (VOCABULARY, lambda file: _to_json(*_read_pair(file, folder / MERGES))),
    ):
        file = folder / name
        if not file.exists():
            continue
        try:
            tokenizer = Tokenizer(read(file))
        except (OSError, ValueError, ConfigError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{file} cannot be imported: {reason}") from error
        _warn_of_special(file, tokenizer)
        return tokenizer
    raise ConfigError(
        f"{folder} has no tokenizer: it has none of {SENTENCE_PIECE}, {FAST}, {VOCABULARY}. Get "
        "the complete folder"
    )


def _to_json(pieces: list[str], merges: list[tuple[str, str]], special: set[int]) -> bytes:
    return byte_level.to_json(pieces, merges, sorted(special))


def _warn_of_special(file: Path, tokenizer: Tokenizer) -> None:
    """Warn that special tokens in a text are encoded as ordinary characters."""
    special = [token for token in tokenizer.special if token != END_OF_TEXT]
    if special:
        shown = ", ".join(special[:3]) + (", ..." if len(special) > 3 else "")
        warnings.warn(
            f"{file} has special tokens ({shown}), which texts and prompts cannot contain: they "
            "are encoded as ordinary text, as in transformers with split_special_tokens=True",
            stacklevel=3,
        )


def _read_pair(vocabulary: Path, merges: Path) -> tuple[list[str], list[tuple[str, str]], set[int]]:
    """Read the vocabulary, merges and special ids of vocab.json and merges.txt."""
    ids = serde.build(dict[str, Count], serde.read(vocabulary))
    lines = serde.read_bytes(merges).decode().split("\n")
    # The first line of GPT-2's file is a version.
    pairs = [tuple(line.split(" ")) for line in lines if line and not _VERSION.match(line)]
    return byte_level.check(ids, pairs, set())


_VERSION = re.compile("#version: ")
