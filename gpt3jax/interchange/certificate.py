"""The certificate of an export: the exported model computes the same logits as the run.

Both models read the same tokens. The largest difference between their logits must be within a
fraction of the largest logit. transformers computes in float32 whatever the dtype of the weights,
so that only the exported weights are compared. StableHLO programs (stablehlo.py) compute in the
dtype they were exported with; the reference is always float32.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.checkpoint.partial_read import StoredParams
from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import RunError
from gpt3jax.interchange.tokenizer_files import AWKWARD
from gpt3jax.model import attention
from gpt3jax.model.gpt3 import block
from gpt3jax.model.layers import embed, unembed
from gpt3jax.model.param_specs import count_params
from gpt3jax.run_dir import Run
from gpt3jax.runtime.memory import available_bytes

FILE = "certificate.json"
TOLERANCE = {"float32": (1e-4, 2e-5), "bfloat16": (1e-1, 3e-2)}
"""By dtype of the weights: absolute tolerance, and tolerance as a fraction of the largest logit;
the larger one applies. As fractions, another order of summation differs by 1e-6 in float32, and
rounding weights to bfloat16's 8 bits by 4e-3 (trained) to 2e-2 (random)."""
MOST_TOKENS = 320
"""Maximum length of a test prompt; longer than a band of 256."""
PROMPT = "def main(arguments):\n    return 0\n\nThe quick brown fox jumps over the lazy dog. "
PIP = "pip install 'gpt3jax[parity]' (PyTorch, transformers)"


class CertificateError(RunError):
    """The exported model does not compute the same logits or tokens as the run."""


@dataclass(frozen=True)
class Source:
    """The verified checkpoint that is exported."""

    run: Run
    model: Model
    """Without LoRA, which is merged when parameters are read."""
    tokenizer: Tokenizer
    manifest: CheckpointManifest
    params: StoredParams

    def facts(self, family: str, dtype: str) -> dict[str, Any]:
        """The fields of the certificate up to `state`."""
        return {
            "family": family,
            "dtype": dtype,
            "parameters": count_params(self.model),
            "step": self.manifest.step,
            "state": self.manifest.state,
        }


@dataclass(frozen=True)
class Certificate:
    """The result of comparing an exported model with its run."""

    family: str
    """The family in transformers, or stablehlo."""
    dtype: str
    parameters: int
    step: int
    state: str
    """Hash of the run's state."""
    peer: str | None
    """The library that computed the logits, with its version; None if nothing was compared."""
    why_not: str
    """The reason if nothing was compared."""
    positions: int = 0
    """Number of positions at which logits over the full vocabulary were compared."""
    difference: float | None = None
    """Largest difference of two logits; None, like the next two, if nothing was compared."""
    largest_logit: float | None = None
    tolerance: float | None = None
    """Maximum allowed `difference`."""
    texts: int = 0
    """Number of texts that both tokenizers encode and decode equally; 0 for programs."""

    @property
    def line(self) -> str:
        """A one-line summary."""
        if self.peer is None:
            return f"certificate: not compared: {self.why_not}"
        tokens = f"; tokens are equal on {self.texts} texts" if self.texts else ""
        return (
            f"certificate: {self.peer} differs by at most {self.difference:.1e}, for logits up to "
            f"{self.largest_logit:.3g} at {self.positions} positions ({self.dtype}: "
            f"{self.tolerance:.1e} allowed){tokens}"
        )

    def write(self, folder: Path) -> None:
        """Write certificate.json."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def certify(folder: Path, source: Source, facts: dict[str, Any]) -> Certificate:
    """Compare an exported folder with the run; `facts` are those of `Source.facts`.

    Raises:
      CertificateError: the logits or tokens differ.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        return Certificate(**facts, peer=None, why_not=f"transformers is not installed. {PIP}")
    # Four bytes per parameter, and the activations of a forward pass.
    if reason := memory_shortage("transformers", 5 * facts["parameters"]):
        return Certificate(**facts, peer=None, why_not=reason)
    texts = _check_tokenizer(folder, source.tokenizer)
    tokens = prompts(source.model, source.tokenizer)
    ours, theirs = our_logits(source.params, tokens, source.model), _their_logits(folder, tokens)
    peer = f"transformers {transformers.__version__}"
    return compare_logits(ours, theirs, peer=peer, texts=texts, **facts)


def memory_shortage(what: str, need: int) -> str:
    """An explanation if `need` bytes of memory are not available, else ""."""
    if need <= available_bytes():
        return ""
    return (
        f"{what} would take {need / 1e9:.3g} GB of memory, {available_bytes() / 1e9:.3g} are free"
    )


def compare_logits(ours: np.ndarray, theirs: np.ndarray, **facts: Any) -> Certificate:
    """Compare logits [..., vocabulary] that should be equal.

    Args:
      ours: logits of the run.
      theirs: logits of the exported model.
      facts: the other fields of the certificate.

    Raises:
      CertificateError: they differ by more than the tolerance.
    """
    largest = float(np.abs(ours).max())
    difference = float(np.abs(ours - theirs).max())
    absolute, relative = TOLERANCE[facts["dtype"]]
    tolerance = max(absolute, relative * largest)
    if not difference <= tolerance:  # Also true for NaN.
        raise CertificateError(
            f"the export is not valid: its logits differ by {difference:.1e} from the run's, "
            f"{tolerance:.1e} is allowed ({facts['dtype']}). "
            "Nothing was written; try --dtype float32, or another step"
        )
    return Certificate(
        **facts,
        why_not="",
        positions=ours[..., 0].size,
        difference=difference,
        largest_logit=largest,
        tolerance=tolerance,
    )


def prompts(model: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Token ids [2, T] for the comparison: an encoded text, and ids drawn with a fixed seed."""
    length = min(model.context, MOST_TOKENS)
    ids = tokenizer.encode(PROMPT)
    text = (ids * (length // len(ids) + 1))[:length]
    drawn = np.random.default_rng(0).integers(0, model.vocabulary, length)
    return np.stack([np.asarray(text), drawn]).astype(np.int32)


def our_logits(params: StoredParams, tokens_BT: np.ndarray, model: Model) -> np.ndarray:
    """Logits [B, T, vocabulary] of a float32 forward pass, with one layer in memory at a time."""
    tables = {name: params.read(name) for name in ("token_embedding", "position_embedding")}
    norm = {kind: params.read(f"final_norm/{kind}") for kind in ("gain", "bias")}
    names = ("norm_1", "qkv", "out", "norm_2", "up", "down")
    run = jax.jit(_layer, static_argnames=("band", "model"))
    with jax.default_matmul_precision("highest"):
        x_BTD = embed(_as_float32(tables), jnp.asarray(tokens_BT), 0, model.vocabulary)
        for index in range(model.n_layers):
            layer = _as_float32({name: params.layer(index, name) for name in names})
            band = None if model.is_dense(index) else model.band
            x_BTD = run(layer, x_BTD, band=band, model=model)
        head = {"token_embedding": tables["token_embedding"], "final_norm": norm}
        logits_BTV = unembed(_as_float32(head), x_BTD, model)
    return np.asarray(logits_BTV)[..., : model.vocabulary]


def _layer(layer: Any, x_BTD: jax.Array, band: int | None, model: Model) -> jax.Array:
    return block(layer, x_BTD, partial(attention.causal_attention, band=band), model)[0]


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _their_logits(folder: Path, tokens_BT: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # gpt3jax shows its own.
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    with torch.no_grad():
        return network.eval()(torch.tensor(tokens_BT).long()).logits.numpy()


def _check_tokenizer(folder: Path, tokenizer: Tokenizer) -> int:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = (*AWKWARD, PROMPT)
    for text in texts:
        ids = tokenizer.encode(text)
        if theirs(text)["input_ids"] != ids or theirs.decode(ids) != text:
            raise CertificateError(
                "the export is not valid: transformers' tokenizer gives different ids for "
                f"{text!r}. Nothing was written"
            )
    return len(texts)
