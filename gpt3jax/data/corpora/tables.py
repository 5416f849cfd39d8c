"""Documents in Parquet files and Hugging Face data sets.

pyarrow and datasets are imported lazily, so that other corpora open fast.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from gpt3jax.data.corpora.documents import (
    PART_BYTES,
    Document,
    Part,
    Skipped,
    choose_field,
    decode_document,
    row_document,
)
from gpt3jax.errors import ConfigError


def parquet_parts(path: str, key: str, fields: Sequence[str]) -> list[Part]:
    """One part per row group.

    Raises:
      ConfigError: the file lacks a field, or it is not a string.
      OSError: it is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, ValueError) as error:  # ValueError: names that are not UTF-8.
        raise OSError(f"not Parquet: {error}") from error
    _check_fields(path, fields, schema)
    groups = range(metadata.num_row_groups)
    sizes = [metadata.row_group(group).total_byte_size for group in groups]
    return [Part("parquet", path, f"{key}:{i}", i, i + 1, sizes[i]) for i in groups]


def _check_fields(where: str, fields: Sequence[str], schema: Any) -> None:
    import pyarrow as pa

    for field in fields:
        if (count := schema.names.count(field)) != 1:
            has = f"has {count} fields" if count else "has no field"
            names = ", ".join(schema.names)
            raise ConfigError(f"{where} {has} {field!r}: it has {names}. {choose_field(fields)}")
        kind = schema.field(field).type
        if kind not in (pa.string(), pa.large_string()):
            raise ConfigError(
                f"field {field!r} of {where} is {kind}: text is string. {choose_field(fields)}"
            )


def read_parquet(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(part.path) as file:
            for batch in file.iter_batches(256, row_groups=[part.start], columns=list(fields)):
                # As binary, because Arrow does not check that strings are UTF-8.
                columns = [
                    batch.column(field).cast(pa.large_binary()).to_pylist() for field in fields
                ]
                for *prompt, text in zip(*columns, strict=True):
                    prompts = (each or b"" for each in prompt)
                    yield decode_document(f"{part.key}:{row}", text or b"", *prompts)
                    row += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        yield Skipped(part.key, "unreadable", str(error))


@functools.cache
def _huggingface_rows(name: str) -> Any:
    """The memory-mapped train split of `NAME` or `NAME:CONFIG`."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"corpus hf:{name} cannot be read: the datasets library is not installed. "
            "pip install 'gpt3jax[hf]'"
        ) from None
    path, _, config = name.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split="train")
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:90]
        raise ConfigError(f"corpus hf:{name} cannot be loaded: {why}. Check the name") from error


def huggingface_parts(spec: str, fields: Sequence[str]) -> list[Part]:
    """Ranges of rows of `hf:NAME` or `hf:NAME:CONFIG`.

    Raises:
      ConfigError: the library, the data set or a field is missing.
    """
    name = spec.removeprefix("hf:")
    rows = _huggingface_rows(name)
    _check_fields(spec, fields, rows.features.arrow_schema)
    row_bytes = max(1, rows.data.nbytes // max(1, len(rows)))
    step = max(1, PART_BYTES // row_bytes)
    parts = []
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        parts.append(Part("hf", name, str(start), start, stop, (stop - start) * row_bytes))
    return parts


def read_huggingface(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of one range of rows."""
    rows = _huggingface_rows(part.path)
    for i in range(part.start, part.stop):
        yield row_document(str(i), rows[i], fields)
