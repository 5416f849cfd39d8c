"""A run's model as programs: StableHLO that jax runs without this package, and the weights.

    prefill(weights, tokens [b, T], length [b]) -> logits [b, V], cache
    decode(weights, cache, token [b])           -> logits [b, V], cache

Any number of rows b, each of its own length; T is the context. Lowered for CPU,
CUDA and TPU by `jax.export`, whose files later versions of jax can read for six
months at least. The weights are arguments, and lie beside as safetensors.
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

from gpt3jax.config import ConfigError, Model
from gpt3jax.data.folder import whole_folder
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.interchange.export import DTYPES, Dtype, Progress, check_is_new, check_space, opened
from gpt3jax.interchange.safetensors import Shapes, write_folder
from gpt3jax.model import rows
from gpt3jax.model.gpt3 import Cache
from gpt3jax.model.params import Params
from gpt3jax.model.table import count, named, table
from gpt3jax.run import open_run
from gpt3jax.train import seal
from gpt3jax.train.slices import StoredParams

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAMS = ("prefill", "decode")

SCRIPT = '''\
"""Continue token ids greedily, by these programs: python run.py HOW-MANY [ID ...]"""
import json, pathlib, sys
import jax, jax.export, numpy as np

here = pathlib.Path(__file__).parent
model, weights = json.loads((here / "model.json").read_text()), {}
for file in here.glob("*.safetensors"):
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int(data[:8].view(np.uint64)[0])
    for name, at in json.loads(data[8:start].tobytes()).items():
        if name != "__metadata__":
            values = data[start + at["data_offsets"][0] : start + at["data_offsets"][1]]
            kind = {"F32": np.float32, "BF16": jax.numpy.bfloat16}[at["dtype"]]
            weights[name] = jax.numpy.asarray(values.view(kind).reshape(at["shape"]))
prefill, decode = (
    jax.jit(jax.export.deserialize((here / f"{name}.jax_export").read_bytes()).call)
    for name in ("prefill", "decode"))
context, end = model["context"], model["end_of_text"]
text = [int(word) for word in sys.argv[2:]] or [end]
new, filled, most = [], context, context
for _ in range(int(sys.argv[1])):
    if filled == context:  # Read the end of the text; once full, its newer half.
        window = text[-most:]
        filled, most = len(window), (context + 1) // 2
        padded = np.pad(np.array([window], np.int32), ((0, 0), (0, context - filled)))
        logits, cache = prefill(weights, padded, np.array([filled], np.int32))
    else:
        logits, cache = decode(weights, cache, np.array(text[-1:], np.int32))
        filled += 1
    text, new = text + [int(logits[0].argmax())], new + [int(logits[0].argmax())]
    if new[-1] == end:
        break
print(json.dumps(new))
sys.stderr.write(b"".join(bytes.fromhex(model["tokens"][t]) for t in new).decode(errors="replace"))
'''


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    parameters: int
    step: int
    bytes: dict[str, int]
    """Of each program."""


def export(
    path: Path, out: Path, *, dtype: Dtype = "float32", step: int | None = None,
    progress: Progress = lambda what, share: None,
) -> Exported:  # fmt: skip
    """Write a model's programs and weights; the folder appears whole.

    Args:
      path: the run.
      out: the folder; not there yet, or empty.
      dtype: of weights and of activations.
      step: of the checkpoint; the newest that is whole, if not given.
      progress: called with what is done, and the share of it.

    Raises:
      ConfigError: `out` holds something, or the package flatbuffers is missing.
      DamagedError: the checkpoint is not what was saved.
      RunError: the disk is too small.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(
            "jax stores programs by the package flatbuffers. pip install 'gpt3jax[stablehlo]'"
        )
    run = open_run(path)
    model = dataclasses.replace(run.experiment().model, lora_rank=0)  # It is merged as it is read.
    check_is_new(out)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    step, params = opened(run, step, progress)
    sizes = {}
    with whole_folder(out) as folder:
        shapes = shapes_of(model)
        check_space(folder, shapes, DTYPES[dtype])
        write_folder(folder, shapes, DTYPES[dtype], _tensors(params, model, progress))
        # Rows past the tokenizer's vocabulary stand for no text: they are never written.
        vocabulary = min(model.vocabulary, tokenizer.vocabulary)
        limited = dataclasses.replace(model, vocabulary=vocabulary, dtype=dtype)
        for name, program in programs(limited, shapes).items():
            progress("programs", PROGRAMS.index(name) / len(PROGRAMS))
            sizes[name] = (folder / f"{name}.jax_export").write_bytes(program.serialize())
        found = seal.read(run.checkpoints / str(step))
        facts = {
            "step": step, "state": found.state, "code": found.code, "dtype": dtype,
            "context": model.context, "vocabulary": vocabulary,
            "end_of_text": tokenizer.end_of_text, "platforms": PLATFORMS,
            "tokens": [tokenizer.token_bytes(token).hex() for token in range(tokenizer.vocabulary)],
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / "run.py").write_text(SCRIPT)
        tokenizer.save(folder / "tokenizer.model")
    progress("programs", 1.0)
    return Exported(count(model), step, sizes)


def programs(model: Model, shapes: Shapes) -> dict[str, jax.export.Exported]:
    """Both programs, for any number of rows and each of the platforms.

    Args:
      model: its shape; `dtype` is that of weights and activations.
      shapes: of the weights.
    """

    def prefill(weights, tokens_bT, length_b):
        logits_bV, cache = rows.prefill_each(_tree(weights, model), tokens_bT, length_b, model)
        return logits_bV, (cache.keys, cache.values, cache.length)

    def decode(weights, cache, token_b):
        logits_bV, cache = rows.decode_each(_tree(weights, model), Cache(*cache), token_b, model)
        return logits_bV, (cache.keys, cache.values, cache.length)

    kind = jax.ShapeDtypeStruct
    (b,) = jax.export.symbolic_shape("b")
    weights = {name: kind(shape, jnp.dtype(model.dtype)) for name, shape in shapes.items()}
    tokens_b = kind((b,), jnp.int32)
    slots = (kind((b, model.n_heads, model.context, model.d_head), jnp.dtype(model.dtype)),)
    cache = (slots * model.n_layers, slots * model.n_layers, tokens_b)
    arguments = {
        "prefill": (prefill, weights, kind((b, model.context), jnp.int32), tokens_b),
        "decode": (decode, weights, cache, tokens_b),
    }
    return {
        name: jax.export.export(jax.jit(function), platforms=PLATFORMS)(*given)
        for name, (function, *given) in arguments.items()
    }


def shapes_of(model: Model) -> Shapes:
    """Names and shapes of the weights: as the table has them, each layer's own apart."""
    found = {}
    for path, spec in named(table(model)):
        top, _, rest = path.partition("/")
        if top == "layers":
            for index in range(model.n_layers):
                found[f"layers.{index}.{rest.replace('/', '.')}"] = spec.shape[1:]
        else:
            found[path.replace("/", ".")] = spec.shape
    return found


def _tensors(
    params: StoredParams, model: Model, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, in the order of `shapes_of`; one at a time is in memory."""
    shapes = shapes_of(model)
    for done, name in enumerate(shapes):
        progress("writing", done / len(shapes))
        top, *rest = name.split(".")
        if top == "layers":
            index, part, which = rest
            yield name, params.layer(int(index), part)[which]
        else:
            yield name, params.whole(name.replace(".", "/"))


def _tree(weights: dict[str, jax.Array], model: Model) -> Params:
    """Named weights as `decode.for_decoding` lays them out: layers in a list."""
    tree: dict[str, Any] = traverse_util.unflatten_dict(weights, sep=".")
    return {**tree, "layers": [tree["layers"][str(i)] for i in range(model.n_layers)]}
