"""Files that somebody else made: read when they hold together, refused in words when not."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt3jax.errors import ConfigError
from gpt3jax.interchange import safetensors
from gpt3jax.interchange.safetensors import FLOATS, INDEX, SINGLE, read_folder, write_folder

VALUES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.float32([1.5, -2.0]),
    "c": np.zeros((0, 4), np.float32),
    "d": np.float32(np.random.default_rng(0).normal(size=(3, 1, 5))),
}
SHAPES = {name: values.shape for name, values in VALUES.items()}


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize("most", [safetensors.SHARD_BYTES, 40, 1])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_written_is_read(tmp_path, monkeypatch, name, most):
    """In one file, in several, and with one tensor in each."""
    monkeypatch.setattr(safetensors, "SHARD_BYTES", most)
    written = write_folder(tmp_path, SHAPES, FLOATS[name], VALUES.items())
    assert sorted(written) == sorted(os.listdir(tmp_path))
    assert (SINGLE in written) == (most > 1000) != (INDEX in written)
    found = {name: tensor.read() for name, tensor in read_folder(tmp_path).items()}
    assert list(found) and found.keys() == VALUES.keys()
    for key, values in VALUES.items():
        assert found[key].dtype == FLOATS[name]
        np.testing.assert_array_equal(found[key], values.astype(FLOATS[name]))


def test_the_library_reads_what_we_write(tmp_path, monkeypatch):
    library = pytest.importorskip("safetensors.numpy")
    write_folder(tmp_path, SHAPES, FLOATS["F32"], VALUES.items())
    found = library.load_file(tmp_path / SINGLE)
    assert all((found[name] == values).all() for name, values in VALUES.items())
    library.save_file(VALUES, tmp_path / "again.safetensors")
    again = safetensors.read_header(tmp_path / "again.safetensors")
    assert all((again[name].read() == values).all() for name, values in VALUES.items())


def test_tensors_that_come_in_another_order_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="came, not"):
        write_folder(tmp_path, SHAPES, FLOATS["F32"], reversed(VALUES.items()))


HOSTILE = {
    "nothing": b"",
    "no header": b"\x08",
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a header of all that there is": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "no JSON": packed(b"{x}"),
    "no UTF-8": packed(b'{"\xff": 1}'),
    "a list": packed([]),
    "nested without end": packed(b'{"a":' * 5000),
    "a name twice": packed(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "no shape": packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "more than a tensor says": packed({"a": {**entry(), "run": "me"}}, bytes(8)),
    "an unknown dtype": packed({"a": entry(dtype="F33")}, bytes(8)),
    "fewer bytes than it says": packed({"a": entry(0, 400, (100,))}, bytes(8)),
    "more bytes than it says": packed({"a": entry()}, bytes(9)),
    "a shape that lies": packed({"a": entry(shape=(3,))}, bytes(8)),
    "a huge shape": packed({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "a negative size": packed({"a": entry(shape=(-1, -2))}, bytes(8)),
    "a size that is no number": packed({"a": entry(shape=("2",))}, bytes(8)),
    "a size that is not whole": packed({"a": entry(shape=(2.0,))}, bytes(8)),
    "an end before the start": packed({"a": entry(8, 0)}, bytes(8)),
    "a place before the values": packed({"a": entry(-8, 0)}, bytes(8)),
    "three places": packed({"a": {**entry(), "data_offsets": [0, 8, 8]}}, bytes(8)),
    "tensors that overlap": packed({"a": entry(), "b": entry(4, 12)}, bytes(12)),
    "two tensors in one place": packed({"a": entry(), "b": entry()}, bytes(8)),
    "an overlap that a gap makes up for": packed({"a": entry(), "b": entry(4, 12)}, bytes(16)),
    "a gap": packed({"a": entry(), "b": entry(12, 20)}, bytes(20)),
    "bytes that belong to nobody": packed({"a": entry()}, bytes(4096)),
    "many dimensions": packed({"a": entry(0, 4, (1,) * 9)}, bytes(4)),
    "metadata that is no text": packed({"__metadata__": {"a": 1}, "a": entry()}, bytes(8)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_does_not_hold_together_is_refused_in_words(tmp_path, what):
    (tmp_path / SINGLE).write_bytes(HOSTILE[what])
    with pytest.raises(ConfigError, match="model.safetensors cannot be read: "):
        read_folder(tmp_path)


def test_the_file_that_these_lie_about_is_read(tmp_path):
    (tmp_path / SINGLE).write_bytes(packed({"a": entry(), "b": entry(8, 16)}, bytes(16)))
    assert read_folder(tmp_path)["b"].read().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["F64", "I64", "F8_E4M3", "BOOL"])
def test_values_that_are_no_weights_are_refused_by_dtype(tmp_path, dtype):
    width = np.dtype({"F64": "f8", "I64": "i8"}.get(dtype, "u1")).itemsize
    header = {"a": entry(0, 2 * width, dtype=dtype)}
    (tmp_path / SINGLE).write_bytes(packed(header, bytes(2 * width)))
    with pytest.raises(ConfigError, match=f"dtype {dtype}"):
        read_folder(tmp_path)["a"].read()


def test_what_is_not_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_folder(tmp_path)


def test_only_safetensors_are_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="safe_serialization=True"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "../outside.safetensors", "/etc/passwd", "sub/one.safetensors", "one.bin", "", ".",
        "..safetensors/../one.safetensors", "one.safetensors\0", "a" * 300 + ".safetensors", 3,
    ],
)  # fmt: skip
def test_an_index_cannot_leave_the_folder(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    whole = packed({"a": entry()}, bytes(8))
    for file in (tmp_path / "outside.safetensors", folder / "one.safetensors"):
        file.write_bytes(whole)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(ConfigError, match=f"{INDEX} cannot be read"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": "one.safetensors"}, "has a tensor b, of which"),
        ({"a": "one.safetensors", "b": "one.safetensors", "x": "one.safetensors"}, "in no file"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "has a tensor b, of which"),
        ({"a": "gone.safetensors"}, "cannot be read: No such file"),
        ([], "not "),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, places, words):
    (tmp_path / "one.safetensors").write_bytes(packed({"a": entry(), "b": entry(8, 16)}, bytes(16)))
    (tmp_path / "two.safetensors").write_bytes(packed({"b": entry()}, bytes(8)))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ConfigError, match=words):
        read_folder(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_of_a_file_changed_anywhere_all_is_read_or_nothing(tmp_path_factory, data):
    """What is read never reaches past the file, and no two tensors share a byte."""
    folder = tmp_path_factory.mktemp("changed")
    write_folder(folder, SHAPES, FLOATS["F32"], VALUES.items())
    content = bytearray((folder / SINGLE).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    (folder / SINGLE).write_bytes(content)
    try:
        found = read_folder(folder)
    except ConfigError as error:
        assert len(str(error)) < 500
        return
    length = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + length]))
    header.pop("__metadata__", None)
    assert header.keys() == found.keys()
    places = []
    for name, each in header.items():
        places += range(*each["data_offsets"])
        if each["dtype"] in FLOATS:
            assert list(found[name].read().shape) == each["shape"]
    assert sorted(places) == list(range(len(content) - 8 - length))
