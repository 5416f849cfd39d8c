"""GPT-2's tokenizer, byte-level BPE, for models that were imported: by the library `tokenizers`.

What is kept is a tokenizer.json that we write ourselves, from a vocabulary and
merges that were checked: one form, which that library and transformers read.
Special tokens have ids and no text: what a person types is never one of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpt3jax import serde
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.serde import Count

END_OF_TEXT = "<|endoftext|>"
SPLIT = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
}  # fmt: skip
"""Words, numbers and signs, each with the space before it: GPT-2's pattern."""


def _letters() -> dict[str, int]:
    """GPT-2's spelling: a printable character for each byte, its own where it has one."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


LETTERS = _letters()


class ByteLevel:
    """A tokenizer made from what `to_json` wrote.

    Raises:
      ConfigError: the library is not installed.
      ValueError: it is no such tokenizer.
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
    """A tokenizer.json.

    Args:
      pieces: of each id; bytes are spelled as GPT-2 does.
      merges: which two become one, the most urgent first.
      special: ids that stand for no text.
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
    """Pieces, merges and special ids of a tokenizer.json, ours or another's.

    Raises:
      ValueError: it is not GPT-2's kind of tokenizer, or does not hold together.
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
            raise ValueError(f"token {truncate(str(content), 40)!r} is added, and is not special")
        special.add(i)
    return check(ids, merges, special)


def check(
    ids: dict[str, int], merges: Sequence[tuple[str, ...]], special: set[int]
) -> tuple[list[str], list[tuple[str, str]], set[int]]:
    """Pieces in their order, merges and special ids, end-of-text among them.

    Raises:
      ValueError: ids do not go from 0 up, a byte has no id, or a piece or merge is not one of
        bytes.
    """
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError("its ids do not go from 0 up, each once")
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
            raise ValueError(f"its merge {truncate(str(pair), 60)} is not of two tokens to a third")
    return pieces, [(left, right) for left, right in merges], special


def _check_kind(record: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse whatever else a tokenizer.json may ask for: it would change what a text becomes."""
    names = ("pre_tokenizer", "post_processor", "decoder")
    split, after, decoder = (
        serde.build(dict[str, Any], record.get(name) or {}, name) for name in names
    )
    for ok, what in (
        (model.get("type", "BPE") == "BPE", "its model is not BPE"),
        (not model.get("byte_fallback"), "its bytes are a fallback"),
        (not model.get("dropout") and not model.get("ignore_merges"), "merges are passed over"),
        (not model.get("continuing_subword_prefix"), "pieces have a prefix"),
        (not model.get("end_of_word_suffix"), "words have a suffix"),
        (not record.get("normalizer"), "it changes the text first"),
        (split.get("type") == decoder.get("type") == "ByteLevel", "it is not byte-level"),
        (not split.get("add_prefix_space", True), "it puts a space before a text"),
        (split.get("use_regex", True) is True, "it splits texts in another way"),
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
