"""What a compiled program sends and multiplies, read from the compiler's text.

Bytes are what one device sends if the collective runs as a ring of n: a gather
or a scatter (n-1)/n of the whole, an all-reduce twice that, a permute what it
passes on. Loops count as often as they run.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
)  # fmt: skip
PRODUCTS = ("dot", "convolution", "cublas")


@dataclass(frozen=True)
class Collective:
    """All collectives of a kind over groups of a size, in one step."""

    kind: str
    group: int
    """Devices that take part in one."""
    count: int
    bytes_sent: float
    """By each device, in all."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step; bytes are per device."""

    peak_bytes: int
    seconds: float
    """To compile."""
    collectives: list[Collective]
    kernels: dict[str, int]
    product_flops: float
    """Of matrix products, recomputed ones too; what kernels do inside is not in the text."""


@dataclass(frozen=True)
class _Instruction:
    kind: str
    result: int
    """Bytes."""
    text: str
    flops: float = 0.0
    """Of a matrix product."""


def collectives(text: str, dynamic: int = 1) -> list[Collective]:
    """The collectives of a program in HLO text, those that send most first.

    `dynamic` is how often a loop runs whose length is not in the program.
    """
    parts, entry = _computations(text)
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0.0])
    chains = set()
    for times, loop, found in _walk(entry, 1, entry, parts, dynamic):
        if found.kind in PRODUCTS:
            continue
        # One that overlaps with products is written once for each of them, as a chain.
        if chain := re.search(r'chain_id="(\d+)"', found.text):
            if (loop, chain.group(1)) in chains:
                continue
            chains.add((loop, chain.group(1)))
        kind, group = found.kind, _group(found.text)
        sums[kind, group][0] += times
        sums[kind, group][1] += times * _sent(kind, group, found.result)
    listed = [Collective(*key, int(count), sent) for key, (count, sent) in sums.items()]
    return sorted(listed, key=lambda each: -each.bytes_sent)


def product_flops(text: str, dynamic: int = 1) -> float:
    """FLOPs of all matrix products that a device computes, each as often as its loop runs."""
    parts, entry = _computations(text)
    return sum(times * found.flops for times, _, found in _walk(entry, 1, entry, parts, dynamic))


def kernels(text: str) -> dict[str, int]:
    """Custom kernels by name, and at how many places the program calls them."""
    counts: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            name = re.search(r"%?([\w.\-]+) = ", line)
            counts[re.sub(r"[.\d]+$", "", name.group(1)) if name else "kernel"] += 1
        elif library := re.search(r'custom_call_target="__(cu(?:dnn|blas)[\w$]+)"', line):
            counts[library.group(1)] += 1
    return dict(counts)


def _walk(
    name: str, times: int, loop: str, parts: dict, dynamic: int
) -> Iterator[tuple[int, str, _Instruction]]:
    """Each collective and product of a computation and of what it calls: how often, in which
    loop, what."""
    for each in parts[name]:
        if each.kind == "while":
            found = re.search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", each.text)
            condition, body = found.groups()
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.text)
            runs = times * (int(known[1]) if known else _trips(condition, parts, dynamic))
            yield from _walk(body, runs, body, parts, dynamic)
        elif each.kind in COLLECTIVES or each.kind in PRODUCTS:
            yield times, loop, each
        elif called := re.search(r"(?:calls|to_apply)=%([\w.\-]+)", each.text):
            inner = called.group(1)
            if inner.startswith("all-reduce-scatter"):
                whole = next(i for i in parts[inner] if i.kind == "all-reduce")
                size = whole.result // max(1, _group(whole.text))
                yield times, loop, _Instruction("reduce-scatter", size, whole.text)
            elif each.kind != "reduce":
                yield from _walk(inner, times, loop, parts, dynamic)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    parts: dict[str, list[_Instruction]] = {}
    current, entry = "", ""
    shapes: dict[str, list[int]] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%(\S+) .*\{$", line):
            current = header.group(2)
            parts[current], shapes = [], {}
            entry = current if header.group(1) else entry
        elif current and (found := re.match(r"\s+(?:ROOT )?%(\S+) = (.*)", line)):
            name, text = found.groups()
            parts[current].append(_instruction(text, shapes))
            shapes[name] = _sizes(text)
    return parts, entry


def _instruction(text: str, shapes: dict[str, list[int]]) -> _Instruction:
    shape, rest = _split_shape(text)
    kind = rest[: rest.index("(")]
    if kind == "collective-permute-start":
        shape = shape[: shape.index("}, ") + 1] if "}, " in shape else shape
    elif kind in ("all-gather-start", "reduce-scatter-start"):
        shape = _last_of(shape)
    elif kind == "custom-call" and '"__cublas$' in rest:
        kind = "cublas"
    flops = _flops(kind, _sizes(shape), rest, shapes) if kind in PRODUCTS else 0.0
    return _Instruction(kind.removesuffix("-start"), _bytes(shape), rest, flops)


def _flops(kind: str, result: list[int], text: str, shapes: dict[str, list[int]]) -> float:
    """Two for each number of the result and each that is summed for it."""
    left, right = (shapes[name] for name in re.findall(r"%([\w.\-]+)", text[: text.index(")")])[:2])
    if kind != "convolution":
        given = r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)'
        axes = re.findall(r"\d+", re.search(given, text).group(1))
        return 2.0 * math.prod(result) * math.prod(left[int(n)] for n in axes)
    # TPUs know products as convolutions. `dim_labels` names the axes of both operands and of the
    # result; axes in space (0, 1, ...) are further ones, to be summed or kept as the window says.
    of_left, of_right, of_result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
    sizes = result[of_result.index("b")] * result[of_result.index("f")]
    flops = 2.0 * sizes * right[of_right.index("i")]
    for axis, window in enumerate(_windows(text)):
        at = str(axis)
        flops *= _met(left[of_left.index(at)], result[of_result.index(at)], window)
    return flops


def _windows(text: str) -> list[dict[str, list[int]]]:
    """For each axis in space: `size`, `stride`, `pad` and so on."""
    found = re.search(r"window=\{(.*?)\}", text)
    given = dict(each.split("=") for each in found.group(1).split()) if found else {}
    parts = {
        name: [list(map(int, n.split("_"))) for n in v.split("x")] for name, v in given.items()
    }
    return [
        {name: values[axis] for name, values in parts.items()}
        for axis in range(len(parts.get("size", ())))
    ]


def _met(left: int, result: int, window: dict[str, list[int]]) -> int:
    """How often, along an axis, a place of the window meets a number rather than padding."""
    (size,), (stride,) = window["size"], window.get("stride", [1])
    (apart,), (spread,) = window.get("rhs_dilate", [1]), window.get("lhs_dilate", [1])
    before = window.get("pad", [0, 0])[0]
    places = (out * stride + tap * apart - before for out in range(result) for tap in range(size))
    return sum(0 <= at < left * spread and at % spread == 0 for at in places)


def _sizes(text: str) -> list[int]:
    """Of the first array in a shape."""
    found = re.search(r"\[([\d,]*)\]", text)
    return [int(n) for n in found.group(1).split(",") if n] if found else []


def _split_shape(text: str) -> tuple[str, str]:
    """`f32[2]{0} add(...)` as its shape and the rest; a tuple's shape has brackets of its own."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return text[:place], text[place + 1 :]
    return text, "("


def _last_of(shape: str) -> str:
    """Of a tuple, the last element: what a collective that starts gives, after what it takes."""
    depth, start = 0, 0
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            start = place + 1
    return shape[start:]


def _bytes(shape: str) -> int:
    found = re.findall(r"\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]", shape)
    return sum(
        BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in found
    )


def _trips(condition: str, parts: dict, dynamic: int) -> int:
    """A loop's length: the constant that its counter is compared with."""
    constants = [
        int(number)
        for each in parts[condition]
        if each.kind == "constant"
        for number in re.findall(r"constant\((\d+)\)", each.text)
    ]
    return max(constants, default=dynamic)


def _group(text: str) -> int:
    """Devices in one group of a collective."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found.group(1).count(",") + 1
    return 1


def _sent(kind: str, group: int, result: int) -> float:
    """Bytes that a device sends in a ring, from the bytes of the result."""
    if kind == "collective-permute":
        return result
    share = (group - 1) / max(1, group)
    return result * {"all-reduce": 2 * share, "reduce-scatter": group - 1}.get(kind, share)
