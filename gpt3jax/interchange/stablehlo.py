"""Export of a run's model as StableHLO programs, which jax runs without this package.

    prefill(weights, tokens [b, T], length [b]) -> logits [b, V], cache
    decode(weights, cache, token [b])           -> logits [b, V], cache

The batch size b is symbolic, rows may differ in length, and T is the context. The programs are
lowered for CPU, CUDA and TPU with `jax.export`, whose files later versions of jax can read for at
least six months. The weights are arguments and are stored as safetensors.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gpt3jax.checkpoint.partial_read import StoredParams
from gpt3jax.config import Model
from gpt3jax.decoding import decode
from gpt3jax.errors import ConfigError
from gpt3jax.interchange.certificate import (
    Certificate,
    Source,
    compare_logits,
    memory_shortage,
    our_logits,
    prompts,
)
from gpt3jax.interchange.export import Dtype, Progress, open_source, write_weights
from gpt3jax.interchange.safetensors import Shapes, read_folder
from gpt3jax.model.gpt3 import Cache
from gpt3jax.model.init import Params
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.runtime.atomic_folder import atomic_folder

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAMS = ("prefill", "decode")

STEPS = 8
"""Decode steps that the certificate compares."""

SCRIPT = '''\
"""Continue token ids greedily with these programs: python run.py NEW-TOKENS [ID ...]"""
import json, pathlib, sys

if not sys.argv[1:] or not all(word.isdecimal() for word in sys.argv[1:]):
    print(__doc__)
    sys.exit(0 if sys.argv[1:2] in (["--help"], ["-h"]) else 2)
try:
    import jax.export, flatbuffers, numpy as np
except ModuleNotFoundError as error:
    why = f"error: run.py needs the package {error.name}. pip install jax flatbuffers"
    print(why, file=sys.stderr)
    sys.exit(2)
here, weights = pathlib.Path(__file__).parent, {}
model = json.loads((here / "model.json").read_text())
for file in here.glob("*.safetensors"):
    start = 8 + int(np.fromfile(file, np.uint64, 1)[0])
    for name, at in json.loads(file.open("rb").read(start)[8:]).items():
        if name != "__metadata__":
            place = start + at["data_offsets"][0], tuple(at["shape"])
            weights[name] = jax.numpy.array(np.memmap(file, model["dtype"], "r", *place))
programs = [(here / f"{name}.jax_export").read_bytes() for name in ("prefill", "decode")]
prefill, decode = (jax.jit(jax.export.deserialize(program).call) for program in programs)
context, end, cache = model["context"], model["end_of_text"], None
text, new = [int(word) for word in sys.argv[2:]] or [end], []
while len(new) < int(sys.argv[1]) and end not in new:
    if cache is None or cache[2][0] == context:  # Prefill; once the cache is full, half the text.
        window = text[-context:] if cache is None else text[-((context + 1) // 2) :]
        padded = window + [0] * (context - len(window))
        logits, cache = prefill(weights, np.int32([padded]), np.int32([len(window)]))
    else:
        logits, cache = decode(weights, cache, np.int32(text[-1:]))
    likeliest = int(logits[0, : len(model["tokens"])].argmax())  # Rows beyond have no token.
    new, text = new + [likeliest], text + [likeliest]
print(json.dumps(new))
sys.stderr.write(b"".join(bytes.fromhex(model["tokens"][t]) for t in new).decode(errors="replace"))
'''


def export(
    path: Path,
    out: Path,
    *,
    dtype: Dtype = "float32",
    step: int | None = None,
    progress: Progress = lambda what, share: None,
) -> Certificate:
    """Write programs and weights to `out`, which is created atomically once it is verified.

    The arguments are those of `export.export`; activations have the dtype of the weights.

    Raises:
      ConfigError: `out` is not empty, or a package is missing.
      DamagedError: the checkpoint is damaged.
      CertificateError: the programs do not compute the same logits as the run.
      RunError: there is not enough disk space.
    """
    for package in ("flatbuffers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"exports of programs need the package {package}. pip install 'gpt3jax[stablehlo]'"
            )
    source = open_source(path, out, step, progress)
    tokenizer, manifest = source.tokenizer, source.manifest
    model = dataclasses.replace(source.model, dtype=dtype)
    shapes = shapes_of(model)
    with atomic_folder(out) as folder:
        write_weights(folder, shapes, dtype, _tensors(source.params, model, progress))
        for name, program in programs(model, shapes).items():
            progress("programs", PROGRAMS.index(name) / len(PROGRAMS))
            (folder / f"{name}.jax_export").write_bytes(program.serialize())
        facts = {
            "step": manifest.step, "state": manifest.state, "code": manifest.code, "dtype": dtype,
            "context": model.context, "vocabulary": model.vocabulary,
            "end_of_text": tokenizer.end_of_text, "platforms": PLATFORMS,
            "tokens": [tokenizer.token_bytes(token).hex() for token in range(tokenizer.vocabulary)],
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / "run.py").write_text(SCRIPT)
        tokenizer.save(folder / "tokenizer.model")
        progress("comparing", 0.0)
        certificate = certify(folder, source, source.facts("stablehlo", dtype))
        certificate.write(folder)
    progress("comparing", 1.0)
    return certificate


def certify(folder: Path, source: Source, facts: dict[str, Any]) -> Certificate:
    """Compare the exported programs and weights with the run.

    Two rows of different lengths are prefilled together and then decoded for some steps. Only the
    programs for CPU are compared, because every machine can run them. `facts` are those of
    `Source.facts`.

    Raises:
      CertificateError: the logits differ.
    """
    model = source.model
    tokens_BT = prompts(model, source.tokenizer)
    B, T = tokens_BT.shape
    slots = B * 2 * model.n_layers * model.context * model.n_heads * model.d_head
    # Three copies: as read, as laid out, and in a step. XLA's CPU backend computes in float32.
    if reason := memory_shortage("the programs", 4 * 3 * (facts["parameters"] + slots)):
        return Certificate(**facts, peer=None, why_not=reason)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return Certificate(**facts, peer=None, why_not="JAX_PLATFORMS excludes the CPU")
    steps = min(STEPS, T // 2)
    length_B = np.array([T // 2, T - steps], np.int32)
    with jax.default_device(cpu):
        theirs = _their_logits(folder, tokens_BT, length_B, steps, model.context)
    at_BT = length_B[:, None] - 1 + np.arange(steps + 1)
    ours = np.take_along_axis(our_logits(source.params, tokens_BT, model), at_BT[..., None], 1)
    return compare_logits(ours, theirs, peer=f"jax {jax.__version__} with the programs", **facts)


def _their_logits(
    folder: Path, tokens_BT: np.ndarray, length_B: np.ndarray, steps: int, context: int
) -> np.ndarray:
    """Logits of the last prefilled token of each row and of each decode step, [B, 1 + steps, V]."""
    prefill, decode = (
        jax.jit(
            jax.export.deserialize(bytearray((folder / f"{name}.jax_export").read_bytes())).call
        )
        for name in PROGRAMS
    )
    weights = {name: jnp.asarray(each.read()) for name, each in read_folder(folder).items()}
    # Hide tokens that are decoded later, so that their keys cannot be in the cache.
    read_BT = np.where(np.arange(tokens_BT.shape[1]) < length_B[:, None], tokens_BT, 0)
    padded = np.pad(read_BT, ((0, 0), (0, context - tokens_BT.shape[1])))
    logits_BV, cache = prefill(weights, padded, length_B)
    logits = [np.asarray(logits_BV)]
    for step in range(steps):
        token_B = np.take_along_axis(tokens_BT, length_B[:, None] + step, 1)[:, 0]
        logits_BV, cache = decode(weights, cache, token_B)
        logits.append(np.asarray(logits_BV))
    return np.stack(logits, axis=1)


def programs(model: Model, shapes: Shapes) -> dict[str, jax.export.Exported]:
    """Export both programs with a symbolic batch size, for all platforms.

    Args:
      model: the model; `dtype` is the dtype of weights and activations.
      shapes: shapes of the weights.
    """

    def first_logits(weights, tokens_bT, length_b):
        logits_bV, cache = decode.prefill(_tree(weights, model), tokens_bT, length_b, model)
        return logits_bV, (cache.keys, cache.values, cache.length)

    def next_logits(weights, cache, token_b):
        logits_bV, cache = decode.decode(_tree(weights, model), Cache(*cache), token_b, model)
        return logits_bV, (cache.keys, cache.values, cache.length)

    kind = jax.ShapeDtypeStruct
    (b,) = jax.export.symbolic_shape("b")
    weights = {name: kind(shape, jnp.dtype(model.dtype)) for name, shape in shapes.items()}
    tokens_b = kind((b,), jnp.int32)
    slots = (kind((b, model.n_heads, model.context, model.d_head), jnp.dtype(model.dtype)),)
    cache = (slots * model.n_layers, slots * model.n_layers, tokens_b)
    arguments = {
        "prefill": (first_logits, weights, kind((b, model.context), jnp.int32), tokens_b),
        "decode": (next_logits, weights, cache, tokens_b),
    }
    return {
        name: jax.export.export(jax.jit(function), platforms=PLATFORMS)(*given)
        for name, (function, *given) in arguments.items()
    }


def shapes_of(model: Model) -> Shapes:
    """Names and shapes of the weights, with unstacked layers."""
    shapes = {}
    for path, spec in named_specs(param_specs(model)):
        top, _, rest = path.partition("/")
        if top == "layers":
            for index in range(model.n_layers):
                shapes[f"layers.{index}.{rest.replace('/', '.')}"] = spec.shape[1:]
        else:
            shapes[path.replace("/", ".")] = spec.shape
    return shapes


def _tensors(
    params: StoredParams, model: Model, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values in the order of `shapes_of`, with one tensor in memory at a time."""
    shapes = shapes_of(model)
    for done, name in enumerate(shapes):
        progress("writing", done / len(shapes))
        top, *rest = name.split(".")
        if top == "layers":
            index, part, which = rest
            yield name, params.layer(int(index), part)[which]
        else:
            yield name, params.read(name.replace(".", "/"))


def _tree(weights: dict[str, jax.Array], model: Model) -> Params:
    """Named weights in the layout of `decode.decoding_params`, with layers in a list."""
    tree: dict[str, Any] = traverse_util.unflatten_dict(weights, sep=".")
    return {**tree, "layers": [tree["layers"][str(i)] for i in range(model.n_layers)]}
