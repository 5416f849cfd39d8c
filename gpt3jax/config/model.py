"""The architecture of a model, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gpt3jax.errors import LARGEST, check, check_choice, check_numbers

VOCABULARY_MULTIPLE = 128
"""The embedding table is padded to this multiple of rows so that it divides over any mesh."""

MOST_LAYERS = 10_000

Activation = Literal["gelu_tanh", "gelu"]
"""GELU with the tanh approximation (GPT-2, adopted in section 2.1), or exact (Cerebras-GPT)."""

Remat = Literal["none", "dots", "mlp", "full"]
"""Remat policy: recompute nothing; all but matrix products; also the MLP's products; everything."""

Dtype = Literal["auto", "float32", "bfloat16", "float8"]
"""auto: float32 on CPU, bfloat16 elsewhere; float8: as auto, but training multiplies the layers'
matrices in float8 (model/float8.py)."""

Weights = Literal["full", "bfloat16", "int8"]
"""Storage of matrices for decoding: in the activation dtype, or quantized (model/quantized.py)."""

Matrix = Literal["qkv", "out", "up", "down"]
"""The weight matrices of a layer."""


@dataclass(frozen=True)
class Model:
    """The architecture of a GPT-3 (section 2.1) and how it is computed.

    `band` and `dense_every` describe the alternating dense and banded layers. The paper does not
    give their pattern; as in GPT-Neo, even layers are dense and odd ones attend to 256 tokens.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    vocabulary: int = 50_257
    context: int = 2048
    """Maximum sequence length in tokens; also the rows of the position embedding."""
    band: int = 256
    """Keys that a query of a banded layer attends to, its own token included."""
    dense_every: int = 2
    """Layer i is dense when i is a multiple of this; 1 makes every layer dense."""
    free_head_width: bool = False
    """Allow n_heads * d_head to differ from d_model."""
    activation: Activation = "gelu_tanh"
    init_std: float = 0.02
    dtype: Dtype = "auto"
    """Dtype of activations; parameters are float32."""
    scan_layers: bool | Literal["auto"] = "auto"
    """Compile one layer and loop over it, or all layers; auto: see gpt3.scans_layers."""
    remat: Remat = "none"
    lora_rank: int = 0
    """Rank of LoRA's low-rank updates (arXiv 2106.09685); 0: no LoRA."""
    lora_matrices: tuple[Matrix, ...] = ("qkv", "out")
    """The matrices of each layer that LoRA adapts."""
    lora_alpha: float = 16.0
    """LoRA updates are scaled by alpha / rank."""
    mup_base: tuple[int, int] | None = None
    """d_model and d_head of muP's base model (model/mup.py); None: no muP."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "model", n_layers=1, d_model=1, n_heads=1, d_head=1, vocabulary=2, context=1,
            band=1, dense_every=1, init_std=0.0, lora_rank=0, lora_alpha=0.0,
        )  # fmt: skip
        check(
            self.n_layers <= MOST_LAYERS,
            f"--model.n-layers is {self.n_layers}: at most {MOST_LAYERS:,} are supported. Lower it",
        )
        check(
            self.parameters_estimate < 1e14,
            f"the model has about {self.parameters_estimate:.1e} parameters: at most 1e14 are "
            "supported. Lower --model.d-model or --model.n-layers",
        )
        for name, kind in (("dtype", Dtype), ("remat", Remat), ("activation", Activation)):
            check_choice(f"--model.{name}", getattr(self, name), get_args(kind))
        for name in self.lora_matrices:
            check_choice("--model.lora-matrices", name, get_args(Matrix))
        distinct = len(set(self.lora_matrices))
        check(
            distinct == len(self.lora_matrices) and (distinct > 0 or self.lora_rank == 0),
            f"--model.lora-matrices is {list(self.lora_matrices)}: it must have at least one name, "
            f"without repeats. Choose from {', '.join(get_args(Matrix))}",
        )
        check(
            self.lora_rank <= self.d_model,
            f"--model.lora-rank is {self.lora_rank}, above d_model {self.d_model}: no matrix has "
            "such a rank. Lower it",
        )
        base = (1, 1) if self.mup_base is None else self.mup_base
        check(
            len(base) == 2 and all(1 <= width <= LARGEST for width in base),
            f"--model.mup-base is {list(base)}: it must be a d_model and a d_head. Give both",
        )
        width = self.n_heads * self.d_head
        check(
            width == self.d_model or self.free_head_width,
            f"--model.n-heads {self.n_heads} x --model.d-head {self.d_head} = {width}, not d_model "
            f"{self.d_model}: the heads must split d_model. Change one of the three, or pass "
            "--model.free-head-width True (Table 2.1 has such shapes for XL and 13B)",
        )

    @property
    def d_ff(self) -> int:
        """Width of the MLP: 4 d_model (Table 2.1)."""
        return 4 * self.d_model

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the token embedding in memory; rows beyond `vocabulary` are never predicted."""
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def parameters_estimate(self) -> float:
        """Parameter count without biases and gains; see param_specs.count_params for the exact."""
        attention = 4 * self.d_model * self.n_heads * self.d_head
        layers = self.n_layers * (attention + 2 * self.d_model * self.d_ff)
        return layers + float(self.vocabulary + self.context) * self.d_model

    def is_dense(self, layer: int) -> bool:
        """Whether a layer attends to the full context rather than to a band."""
        return layer % self.dense_every == 0 or self.band >= self.context
