"""GPT-2's byte-level BPE tokenizer for imported models, run by the library `tokenizers`.

A run stores a tokenizer.json in one canonical form, written from a checked
vocabulary and merges, which `tokenizers` and transformers can read. Special
tokens have ids but no text: no input text encodes to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpt3jax import serde
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.serde import Count

END_OF_TEXT = "<|endoftext|>"
SPLIT: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
"""GPT-2's pre-tokenizer: words, numbers and punctuation, each with its leading space."""


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: the printable character that stands for each byte, with the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


LETTERS = _byte_of_letter()


class ByteLevel:
    """A tokenizer from the bytes of a tokenizer.json.

    Raises:
      ConfigError: the library is not installed.
      ValueError: the file is not a tokenizer of GPT-2's kind.
    """

    def __init__(self, model: bytes) -> None:
        pieces, merges, special = from_json(model)
        self.token_bytes = tuple(
            b"" if i in special else bytes(LETTERS[letter] for letter in piece)
            for i, piece in enumerate(pieces)
        )
        self.end_of_text = pieces.index(END_OF_TEXT)
        self.special = tuple(pieces[i] for i in sorted(special))
        tokenizers = _library()
        ids = {piece: i for i, piece in enumerate(pieces)}
        self._library = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
        self._library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=SPLIT["add_prefix_space"], use_regex=SPLIT["use_regex"]
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._library.encode(text).ids


def to_json(
    pieces: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[int]
) -> bytes:
    """The canonical tokenizer.json.

    Args:
      pieces: the token of each id, in GPT-2's alphabet of bytes.
      merges: the BPE merges in order of priority.
      special: ids of special tokens.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": pieces[i], **flags, "special": True} for i in sorted(special)]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": [list(pair) for pair in merges],
    }  # fmt: skip
    record = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": SPLIT, "post_processor": None, "decoder": SPLIT,
        "model": model,
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def from_json(text: bytes) -> tuple[list[str], list[tuple[str, str]], set[int]]:
    """Pieces, merges and special ids of any tokenizer.json.

    Raises:
      ValueError: it is not a tokenizer of GPT-2's kind, or is inconsistent.
    """
    record = serde.build(dict[str, Any], serde.parse(text.decode()))
    model = serde.build(dict[str, Any], record.get("model"), "model")
    _check_kind(record, model)
    ids = serde.build(dict[str, Count], model.get("vocab"), "vocab")
    merges = []
    for pair in serde.build(tuple[Any, ...], model.get("merges"), "merges"):
        halves = pair.split(" ") if isinstance(pair, str) else pair
        merges.append(serde.build(tuple[str, ...], halves, "merges"))
    special = set()
    for token in serde.build(tuple[dict[str, Any], ...], record.get("added_tokens", [])):
        content, i = token.get("content"), serde.build(Count, token.get("id"), "id")
        if token.get("special") is not True or ids.setdefault(str(content), i) != i:
            raise ValueError(f"its added token {truncate(str(content), 40)!r} is not special")
        special.add(i)
    return check(ids, merges, special)


def check(
    ids: dict[str, int], merges: Sequence[tuple[str, ...]], special: set[int]
) -> tuple[list[str], list[tuple[str, str]], set[int]]:
    """Pieces in the order of their ids, merges, and special ids including end-of-text.

    Raises:
      ValueError: ids are not consecutive from 0, a byte has no id, or a piece or merge is invalid.
    """
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError("its ids are not consecutive from 0")
    if END_OF_TEXT not in ids:
        raise ValueError(f"it has no {END_OF_TEXT}")
    special = special | {ids[END_OF_TEXT]}
    plain = {piece for piece in pieces if ids[piece] not in special}
    wrong = next((piece for piece in plain if not piece or set(piece) - LETTERS.keys()), None)
    if wrong is not None:
        raise ValueError(f"its token {truncate(wrong, 40)!r} is not spelled in bytes")
    if not plain >= LETTERS.keys():
        raise ValueError("it has no id for some byte")
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= plain:
            raise ValueError(f"its merge {truncate(str(pair), 60)} does not join two tokens to one")
    return pieces, [(left, right) for left, right in merges], special


def _check_kind(record: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse every other option of a tokenizer.json that would change the encoding."""
    names = ("pre_tokenizer", "post_processor", "decoder")
    split, after, decoder = (
        serde.build(dict[str, Any], record.get(name) or {}, name) for name in names
    )
    for ok, what in (
        (model.get("type", "BPE") == "BPE", "its model is not BPE"),
        (not model.get("byte_fallback"), "its bytes are a fallback"),
        (not model.get("dropout") and not model.get("ignore_merges"), "it skips merges"),
        (not model.get("continuing_subword_prefix"), "pieces have a prefix"),
        (not model.get("end_of_word_suffix"), "words have a suffix"),
        (not record.get("normalizer"), "it normalizes the text"),
        (split.get("type") == decoder.get("type") == "ByteLevel", "it is not byte-level"),
        (not split.get("add_prefix_space", True), "it puts a space before a text"),
        (split.get("use_regex", True) is True, "it splits text differently"),
        (after.get("type", "ByteLevel") == "ByteLevel" or not after.get("special_tokens", True),
         "it puts tokens around a text"),
    ):  # fmt: skip
        if not ok:
            raise ValueError(f"{what}, as GPT-2's does not")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "this run has GPT-2's kind of tokenizer, which needs the package tokenizers. "
            "pip install 'gpt3jax[huggingface]'"
        ) from error
    return tokenizers
