"""A tokenizer as transformers keeps it, written and read: the same ids for every text.

Ours is written as a tokenizer.json for the library `tokenizers`, beside the
SentencePiece model itself. transformers' own conversion (LlamaTokenizer) takes a
real U+2581 for a space, and end-of-text that somebody types for the end; this
one spells pieces with real spaces, so that every other character is itself. One
thing differs, and only for ids that no text has: where a model writes bytes that
are not UTF-8, the library makes U+FFFD of all bytes around them, too.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

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
"""How SentencePiece writes a space."""

AWKWARD = (
    "", " ", "  two  spaces ", "\n\n\t x", "\r\n", "\0", "\u2581", "a\u2581b \u2581", "\u2585",
    END_OF_TEXT, f"a{END_OF_TEXT}b", "<0x41>", "<unk>", "\ufeff", "\u00a0\u3000", "\ufffd",
    "\U0010ffff", "\U0001f600\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd\u200f",
    "\u65e5\u672c\u8a9e", "e\u0301", "=" * 77, "a" * 50, " " * 33, "it's we'LL 1234567 x_y(z)",
)  # fmt: skip
"""Texts on which tokenizers that agree elsewhere differ."""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write what AutoTokenizer loads.

    Raises:
      ConfigError: the tokenizer is a SentencePiece model of another kind than ours.
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
        # What a person types ends no document.
        "split_special_tokens": True,
        "model_max_length": context,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _fast(model: bytes) -> bytes:
    """A tokenizer.json of a SentencePiece BPE model."""
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
            "the tokenizer is not SentencePiece BPE as gpt3jax trains it, but of another kind "
            "(unigram?): it cannot be exported. Train one: gpt3jax data prepare --corpus FILES "
            "--out data/own"
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
    """The tokenizer of a model's folder: SentencePiece, or GPT-2's in either of its forms.

    Raises:
      ConfigError: there is none, or one whose ids would not be the same here.
    """
    for name, read in (
        (SENTENCE_PIECE, lambda file: serde.read_bytes(file)),
        (FAST, lambda file: byte_level.to_json(*byte_level.from_json(serde.read_bytes(file)))),
        (VOCABULARY, lambda file: byte_level.to_json(*_read_pair(file, folder / MERGES))),
    ):
        file = folder / name
        if not file.exists():
            continue
        try:
            tokenizer = Tokenizer(read(file))
        except (OSError, ValueError, ConfigError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{file} cannot be taken over: {why}") from error
        _warn_of_special(file, tokenizer)
        return tokenizer
    raise ConfigError(
        f"{folder} has no tokenizer: none of {SENTENCE_PIECE}, {FAST}, {VOCABULARY}. Its weights "
        "alone read no text; get the whole folder"
    )


def _warn_of_special(file: Path, tokenizer: Tokenizer) -> None:
    """Say what becomes of special tokens that are written in a text."""
    special = [token for token in tokenizer.special if token != END_OF_TEXT]
    if special:
        shown = ", ".join(special[:3]) + (", ..." if len(special) > 3 else "")
        warnings.warn(
            f"{file} has special tokens ({shown}) that a text or prompt cannot give: where they "
            "are written there, they are encoded letter by letter, as transformers does with "
            "split_special_tokens=True",
            stacklevel=3,
        )


def _read_pair(vocabulary: Path, merges: Path) -> tuple[Any, Any, Any]:
    """Pieces, merges and special ids of vocab.json and merges.txt."""
    ids = serde.build(dict[str, Count], serde.read(vocabulary))
    lines = serde.read_bytes(merges).decode().split("\n")
    # GPT-2's first line names a version.
    pairs = [tuple(line.split(" ")) for line in lines if line and not _VERSION.match(line)]
    return byte_level.check(ids, pairs, set())


_VERSION = re.compile("#version: ")
