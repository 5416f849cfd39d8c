"""The configuration of a run: frozen dataclasses that validate themselves on construction.

An experiment file returns one `Experiment`. Derived values are properties, never fields. An
invalid value raises `ConfigError`, with the reason and a fix, before anything is allocated.
Importing this module does not import jax.

Numbers come from Brown et al. 2020 (arXiv 2005.14165), section 2.1, Table 2.1 and Appendix B,
unless a comment says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from gpt3jax import serde
from gpt3jax.errors import LARGEST, ConfigError, check, check_choice, check_numbers

VOCABULARY_MULTIPLE = 128
"""The embedding table is padded to this multiple of rows so that it divides over any mesh."""

MOST_LAYERS = 10_000
MOST_WINDOWS = 2**20
"""Maximum number of windows in a batch."""

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


@dataclass(frozen=True)
class Source:
    """A prepared data set and its share of the training windows."""

    name: str
    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check(
            0 < self.weight <= LARGEST,
            f"data source {self.name!r} has weight {self.weight}: it must be positive and finite. "
            "Change it, or remove the source",
        )


@dataclass(frozen=True)
class Data:
    """The training data: prepared data sets, mixed by weight (weights need not sum to 1)."""

    sources: tuple[Source, ...]
    """Empty only in imported runs, which cannot be trained."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), f"data sources {names} repeat a name. Rename one")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Appendix B).

    The paper does not say which parameters decay. As in most GPT-2 reimplementations, matrices
    and embeddings do; biases and gains do not.
    """

    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    weight_decay: float = 0.1

    state_bytes: ClassVar[int] = 8
    """Per trained parameter: two float32 moments."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer", b1=0, b2=0, epsilon=0, clip_norm=1e-12, weight_decay=0)
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            check(value < 1, f"--optimizer.{name} is {value}: it must be below 1. Lower it")


Optimizer = AdamW
"""One record for each optimizer (`AdamW | ...`); train/optimizers.py has a function for each."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by tokens consumed (Appendix B): linear warm-up, cosine decay, constant."""

    peak_learning_rate: float
    warmup_tokens: int = 375_000_000
    decay_tokens: int = 260_000_000_000
    """Tokens, from the start of training, at which the cosine reaches its floor."""
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_numbers(
            self, "schedule", peak_learning_rate=0, warmup_tokens=0, decay_tokens=0,
            final_fraction=0,
        )  # fmt: skip
        check(
            self.decay_tokens > self.warmup_tokens,
            f"--schedule.decay-tokens is {self.decay_tokens}, within the warm-up of "
            f"{self.warmup_tokens} tokens: it must be above it. Raise it",
        )


@dataclass(frozen=True)
class Train:
    """The length of training, its batches and its checkpoints."""

    batch_tokens: int
    """Tokens in a full batch, a multiple of the context."""
    tokens: int = 300_000_000_000
    """Total number of training tokens."""
    steps: int | None = None
    """Stop after this many steps, if that comes before `tokens`."""
    ramp_from_tokens: int = 32_768
    """Batch size at the start of the ramp, in tokens."""
    ramp_tokens: int = 0
    """Tokens over which the batch size grows linearly to full; 0: full from the start."""
    microbatch: int = 0
    """Windows per forward pass over the mesh (gradient accumulation); 0: the full batch."""
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3
    """Number of newest checkpoints to retain."""
    only: tuple[str, ...] = ()
    """Paths of parameters to train, as layers/qkv, */bias, layers[8:12]; empty: all, or LoRA's."""
    noise_scale: bool = False
    """Estimate the gradient noise scale where gradients are accumulated; costs memory traffic."""
    patience: int = 0
    """Early stopping: evaluations without a better val_loss, then the best checkpoint; 0: off."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "train", batch_tokens=1, tokens=1, ramp_from_tokens=1, ramp_tokens=0,
            microbatch=0, log_every=1, save_every=1, keep=1, patience=0,
        )  # fmt: skip
        check(
            self.steps is None or self.steps >= 1,
            f"--train.steps is {self.steps}: it must be at least 1. Raise it, or give None",
        )


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis: a number, -1 for all remaining devices, or auto (`plan` chooses)."""

    data: int | Literal["auto"] = -1
    """Data parallelism: each replica of the parameters reads its own windows."""
    fsdp: int | Literal["auto"] = 1
    """Parameters are sharded, with an all-gather per layer; each shard reads its own windows."""
    tensor: int | Literal["auto"] = 1
    """Heads, MLPs and windows are sharded."""

    def __post_init__(self) -> None:
        values = list((sizes := dataclasses.asdict(self)).values())
        check(
            all(size in ("auto", -1) or size > 0 for size in values),
            f"mesh {sizes}: an axis must be 1 or more devices, -1 for the rest, or auto. Change it",
        )
        check(
            values.count(-1) <= 1 and not (-1 in values and "auto" in values),
            f"mesh {sizes}: only one axis can be -1, and none if another is auto. "
            "Give the others a number",
        )


@dataclass(frozen=True)
class Evaluate:
    """What is measured and sampled during training."""

    every: int = 1000
    """Steps between evaluations."""
    windows: int = 256
    """Held-out windows per evaluation, always the same ones; 0: all."""
    prompt: str = ""
    """Prompt of the samples; empty: start a new document."""
    sample_tokens: int = 128
    tasks: tuple[str, ...] = ()
    """Tasks scored at each evaluation, as with `gpt3jax evaluate --beams 0`."""
    shots: tuple[int, ...] = (0, 8)
    """Numbers of demonstrations."""
    examples: int = 100
    """Examples of each task."""

    def __post_init__(self) -> None:
        check_numbers(self, "evaluate", every=1, windows=0, sample_tokens=0, examples=1)
        check(
            all(0 <= shots <= MOST_WINDOWS for shots in self.shots),
            f"--evaluate.shots is {list(self.shots)}: shots are at least 0. Change them",
        )
        check(
            not re.search("[\ud800-\udfff]", self.prompt),
            "--evaluate.prompt is not text: its bytes are not UTF-8. Write it in UTF-8",
        )


@dataclass(frozen=True)
class Experiment:
    """The complete configuration of one training run."""

    name: str
    model: Model
    data: Data
    schedule: Schedule
    train: Train
    optimizer: Optimizer = field(default_factory=AdamW)
    mesh: Mesh = field(default_factory=Mesh)
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: int = 0
    init_from: str = ""
    """Initialize from a run, RUN (its newest checkpoint) or RUN@STEP; empty: from the seed."""

    def __post_init__(self) -> None:
        batch, context = self.train.batch_tokens, self.model.context
        check(
            re.fullmatch(r"\w[\w.,=+-]{0,99}", self.name) is not None,
            f"--name is {self.name!r}: it names the run directory. Use letters, digits and _.,=+-",
        )
        check(
            batch % context == 0,
            f"--train.batch-tokens is {batch}, not a multiple of the context {context}: a batch "
            f"consists of windows. Use {max(1, round(batch / context)) * context}",
        )
        check(
            self.batch_sequences <= MOST_WINDOWS,
            f"--train.batch-tokens is {batch}, {self.batch_sequences:,} windows of {context}: "
            f"at most {MOST_WINDOWS:,} are supported. Lower it",
        )
        check(
            self.batch_sequences % self.microbatch == 0,
            f"--train.microbatch is {self.microbatch}, but the batch has {self.batch_sequences} "
            "windows: it must divide them. Use a divisor",
        )
        check(0 <= self.seed < 2**32, f"--seed is {self.seed}: not in 0 to 2^32 - 1. Change it")

    @property
    def batch_sequences(self) -> int:
        """Windows in a full batch."""
        return self.train.batch_tokens // self.model.context

    @property
    def microbatch(self) -> int:
        """Windows per forward pass over the mesh."""
        return self.train.microbatch or self.batch_sequences

    def to_json(self) -> str:
        """The resolved experiment as JSON, as stored in experiment.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Experiment:
        """Parse the output of `to_json`.

        Raises:
          ConfigError: the text is not an experiment of this version.
        """
        try:
            return serde.build(Experiment, serde.parse(text))
        except ValueError as error:
            raise ConfigError(f"this is not an experiment: {error}. Fix it") from error

    def identity(self) -> dict[str, Any]:
        """The fields that determine the numbers of a run; a checkpoint only resumes if they match.

        Fields that only affect how the run is computed, logged or stopped may change on resume.
        Fields that are turned off are excluded, as in runs from before these fields existed.
        """
        fields = dataclasses.asdict(self)
        top = ["name", "mesh", "evaluate"] + ([] if self.init_from else ["init_from"])
        model = ["dtype", "scan_layers", "remat"]
        model += ["activation"] if self.model.activation == "gelu_tanh" else []
        model += ["mup_base"] if self.model.mup_base is None else []
        model += [] if self.model.lora_rank else ["lora_rank", "lora_matrices", "lora_alpha"]
        train = ["tokens", "steps", "microbatch", "log_every", "save_every", "keep", "patience"]
        train += ["noise_scale"] + ([] if self.train.only else ["only"])
        for group, names in ((fields, top), (fields["model"], model), (fields["train"], train)):
            for name in names:
                del group[name]
        for source in fields["data"]["sources"]:
            del source["path"]
        return fields
