"""The certificate of an export: what others make of the folder is what we make of the run.

Both read the same tokens; the largest difference between their logits must stay
within a share of the largest logit. transformers' arithmetic is float32, whatever the
weights are stored as, so that only what was exported is compared; programs
(stablehlo.py) compute in what they were exported for, and ours in float32.
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

from gpt3jax.checkpoint.partial_read import StoredParams
from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import RunError
from gpt3jax.interchange.tokenizer_files import AWKWARD
from gpt3jax.model import attention
from gpt3jax.model.gpt3 import block
from gpt3jax.model.layers import embed, unembed
from gpt3jax.model.param_specs import count_params
from gpt3jax.runtime.memory import available_bytes

FILE = "certificate.json"
TOLERANCE = {"float32": (1e-4, 2e-5), "bfloat16": (1e-1, 3e-2)}
"""By what weights are stored as: what is allowed of any logits, and, if that is more, as a share
of the largest. Summing in another order makes 1e-6 of float32, and rounding weights to 8 bits
between 4e-3 (trained) and 2e-2 (random) of bfloat16; both are shares of the largest."""
MOST_TOKENS = 320
"""Of a prompt: more than a band of 256."""
PROMPT = "def main(arguments):\n    return 0\n\nThe quick brown fox jumps over the lazy dog. "
PIP = "pip install 'gpt3jax[parity]' (PyTorch, transformers)"


class CertificateError(RunError):
    """The exported folder does not compute what the run does."""


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how far apart it was."""

    family: str
    """transformers' name for it; or stablehlo."""
    dtype: str
    parameters: int
    step: int
    state: str
    """Hash of the run's state."""
    peer: str | None
    """Who computed the logits, with its version; None if nothing was compared."""
    why_not: str
    """In words, where nothing was compared."""
    positions: int = 0
    """Logits over the whole vocabulary were compared at so many."""
    difference: float | None = None
    """The largest, between any two logits; None, as the next two, where nothing was compared."""
    largest_logit: float | None = None
    tolerance: float | None = None
    """What `difference` may be."""
    texts: int = 0
    """Texts that both tokenizers gave the same ids for, and back; programs have no tokenizer."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        if self.peer is None:
            return f"certificate: not compared: {self.why_not}"
        tokens = f"; tokens are equal on {self.texts} texts" if self.texts else ""
        return (
            f"certificate: {self.peer} differs by {self.difference:.1e} at most, of logits up to "
            f"{self.largest_logit:.3g} at {self.positions} positions ({self.dtype}: "
            f"{self.tolerance:.1e} allowed){tokens}"
        )

    def write(self, folder: Path) -> None:
        """Write certificate.json."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def certify(
    folder: Path, params: StoredParams, model: Model, tokenizer: Tokenizer, **facts: Any
) -> Certificate:
    """Compare an exported folder with the run that it comes from.

    Args:
      folder: what was exported.
      params: the run's.
      model: its shape.
      tokenizer: its tokenizer.
      facts: the fields of the certificate up to `state`.

    Raises:
      CertificateError: they are not the same model, or not the same tokenizer.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        return Certificate(**facts, peer=None, why_not=f"transformers is not installed. {PIP}")
    # Four bytes each, and what a forward pass takes.
    if why := too_large("transformers", 5 * count_params(model)):
        return Certificate(**facts, peer=None, why_not=why)
    texts = _check_tokenizer(folder, tokenizer)
    tokens = prompts(model, tokenizer)
    ours, theirs = our_logits(params, tokens, model), _their_logits(folder, tokens)
    peer = f"transformers {transformers.__version__}"
    return compared(ours, theirs, peer=peer, texts=texts, **facts)


def too_large(what: str, need: int) -> str:
    """Why something is not loaded that takes so many bytes, in words; nothing if it fits."""
    if need <= available_bytes():
        return ""
    return (
        f"{what} would take {need / 1e9:.3g} GB of memory, {available_bytes() / 1e9:.3g} are free"
    )


def compared(ours: np.ndarray, theirs: np.ndarray, **facts: Any) -> Certificate:
    """The certificate of logits [..., vocabulary] that should be the same.

    Args:
      ours: of the run.
      theirs: of what was exported.
      facts: the fields of the certificate that do not follow from these.

    Raises:
      CertificateError: they are not.
    """
    largest = float(np.abs(ours).max())
    least, share = TOLERANCE[facts["dtype"]]
    found = Certificate(
        **facts, why_not="", positions=ours[..., 0].size,
        difference=float(np.abs(ours - theirs).max()), largest_logit=largest,
        tolerance=max(least, share * largest),
    )  # fmt: skip
    if not found.difference <= found.tolerance:  # NaN, too.
        raise CertificateError(
            f"the export does not hold: its logits differ by {found.difference:.1e} from the "
            f"run's, {found.tolerance:.1e} is allowed ({found.dtype}). "
            "Nothing was left; try --dtype float32, or another step"
        )
    return found


def prompts(model: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Fixed token ids [2, T]: of a text, and drawn at random from all that the model has."""
    length = min(model.context, MOST_TOKENS)
    ids = tokenizer.encode(PROMPT)
    text = (ids * (length // len(ids) + 1))[:length]
    drawn = np.random.default_rng(0).integers(0, model.vocabulary, length)
    return np.stack([np.asarray(text), drawn]).astype(np.int32)


def our_logits(params: StoredParams, tokens_BT: np.ndarray, model: Model) -> np.ndarray:
    """The forward pass in float32, [B, T, vocabulary], one layer in memory at a time."""
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

    logging.disable_progress_bar()  # Ours is enough.
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
                f"the export does not hold: transformers' tokenizer has other ids for {text!r}. "
                "Nothing was left"
            )
    return len(texts)
