"""Everything a run is told: frozen dataclasses, checked when they are made.

An experiment file returns one `Experiment`. Values that can be derived are properties, never
fields. A wrong value raises `ConfigError` before anything is allocated, with what is wrong, why,
and the fix. Importing this file does not import jax.

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
from gpt3jax.errors import RunError as RunError
from gpt3jax.serde import short_hash as short_hash

VOCABULARY_MULTIPLE = 128
"""Embedding rows are padded to this multiple, so that any mesh divides them."""

MOST_LAYERS = 10_000
MOST_WINDOWS = 2**20
"""Of a batch: what is one entry each in lists."""

Activation = Literal["gelu_tanh", "gelu"]
"""GELU in its tanh form (GPT-2's, which section 2.1 takes over), or exact (Cerebras-GPT's)."""

Remat = Literal["none", "dots", "mlp", "full"]
"""What the backward pass recomputes: nothing; all but matrix products; the MLP's too; all."""

Dtype = Literal["auto", "float32", "bfloat16", "float8"]
"""auto: float32 on CPU, bfloat16 elsewhere; float8: the same, but while a model is trained its
layers' matrices multiply in float8 (model/float8.py)."""

Weights = Literal["full", "bfloat16", "int8"]
"""How matrices are stored for generation: as computed, or in fewer bits (model/quantized.py)."""

Matrix = Literal["qkv", "out", "up", "down"]
"""The matrices of a layer."""


@dataclass(frozen=True)
class Model:
    """The shape of a GPT-3 (section 2.1) and how it is computed.

    `band` and `dense_every` describe the alternating dense and banded layers, which the paper
    does not publish; as in GPT-Neo, even layers are dense, odd ones see the last 256 tokens.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    vocabulary: int = 50_257
    context: int = 2048
    """Tokens the model sees at once; also the rows of the position table."""
    band: int = 256
    """Keys a banded layer sees, the token itself included."""
    dense_every: int = 2
    """Layer i is dense when i is a multiple of this; 1 makes every layer dense."""
    free_head_width: bool = False
    """Allow n_heads * d_head to differ from d_model."""
    activation: Activation = "gelu_tanh"
    init_std: float = 0.02
    dtype: Dtype = "auto"
    """Of activations; parameters stay float32."""
    scan_layers: bool = True
    """Compile one layer and loop (large models), or unroll (faster on CPU). Same numbers."""
    remat: Remat = "none"
    lora_rank: int = 0
    """Of the changes that low-rank adaptation learns (arXiv 2106.09685); 0: none."""
    lora_matrices: tuple[Matrix, ...] = ("qkv", "out")
    """Which matrices of each layer they change."""
    lora_alpha: float = 16.0
    """A change is alpha / rank times the product of its two factors."""
    mup_base: tuple[int, int] | None = None
    """d_model and d_head from which muP scales to this width (model/mup.py); None: no muP."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "model", n_layers=1, d_model=1, n_heads=1, d_head=1, vocabulary=2, context=1,
            band=1, dense_every=1, init_std=0.0, lora_rank=0, lora_alpha=0.0,
        )  # fmt: skip
        check(
            self.n_layers <= MOST_LAYERS,
            f"--model.n-layers is {self.n_layers}: over {MOST_LAYERS:,} no model has. Lower it",
        )
        check(
            self.parameters_estimate < 1e14,
            f"the model has about {self.parameters_estimate:.1e} parameters: no machine holds "
            "that. Lower --model.d-model or --model.n-layers",
        )
        check_choice("--model.dtype", self.dtype, get_args(Dtype))
        check_choice("--model.remat", self.remat, get_args(Remat))
        check_choice("--model.activation", self.activation, get_args(Activation))
        for name in self.lora_matrices:
            check_choice("--model.lora-matrices", name, get_args(Matrix))
        distinct = len(set(self.lora_matrices))
        check(
            distinct == len(self.lora_matrices) and (distinct > 0 or self.lora_rank == 0),
            f"--model.lora-matrices is {list(self.lora_matrices)}: each is named once, and one at "
            f"least. Choose of {', '.join(get_args(Matrix))}",
        )
        check(
            self.lora_rank <= self.d_model,
            f"--model.lora-rank is {self.lora_rank}, over the width {self.d_model}: no matrix has "
            "that rank. Lower it",
        )
        base = (1, 1) if self.mup_base is None else self.mup_base
        check(
            len(base) == 2 and all(1 <= width <= LARGEST for width in base),
            f"--model.mup-base is {list(base)}: it is the d_model and d_head of a model. Give both",
        )
        width = self.n_heads * self.d_head
        check(
            width == self.d_model or self.free_head_width,
            f"--model.n-heads {self.n_heads} x --model.d-head {self.d_head} = {width}, not d_model "
            f"{self.d_model}: the heads share the model's width. Change one of the three, or pass "
            "--model.free-head-width True (Table 2.1 prints such shapes for XL and 13B)",
        )

    @property
    def d_ff(self) -> int:
        """Width of the MLP: four times the model's (Table 2.1)."""
        return 4 * self.d_model

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding table in memory; rows past `vocabulary` are never predicted."""
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def parameters_estimate(self) -> float:
        """Parameters, without biases and gains; the exact count is model.table.count."""
        attention = 4 * self.d_model * self.n_heads * self.d_head
        layers = self.n_layers * (attention + 2 * self.d_model * self.d_ff)
        return layers + float(self.vocabulary + self.context) * self.d_model

    def is_dense(self, layer: int) -> bool:
        """Whether a layer sees the whole past rather than a band."""
        return layer % self.dense_every == 0 or self.band >= self.context


@dataclass(frozen=True)
class Source:
    """One prepared data set and its share of the training examples."""

    name: str
    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check(
            0 < self.weight <= LARGEST,
            f"data source {self.name!r} has weight {self.weight}: a share must be above 0, and "
            "finite. Change it, or leave the source out",
        )


@dataclass(frozen=True)
class Data:
    """What the model reads: prepared data sets, mixed by weight (weights need not sum to 1)."""

    sources: tuple[Source, ...]
    """Only a run that was imported has none; it cannot be trained."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), f"data sources {names} repeat a name. Rename one")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Appendix B). Biases and gains are not decayed.

    The paper does not say what is left out of the decay; we follow GPT-2's
    successors: only matrices and embeddings decay.
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
        for name in ("b1", "b2"):
            value = getattr(self, name)
            check(value < 1, f"--optimizer.{name} is {value}: a decay rate is below 1. Lower it")


Optimizer = AdamW
"""One record for each optimizer (`AdamW | ...`); train/optimizers.py has a function for each."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of tokens seen (Appendix B): warm-up, cosine, constant."""

    peak_learning_rate: float
    warmup_tokens: int = 375_000_000
    decay_tokens: int = 260_000_000_000
    """The cosine reaches its floor here, counted from the start of training."""
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_numbers(
            self, "schedule", peak_learning_rate=0, warmup_tokens=0, decay_tokens=0,
            final_fraction=0,
        )  # fmt: skip
        check(
            self.decay_tokens > self.warmup_tokens,
            f"--schedule.decay-tokens is {self.decay_tokens}, within the warm-up of "
            f"{self.warmup_tokens} tokens: the cosine has no room. Raise it",
        )


@dataclass(frozen=True)
class Train:
    """How long, in what batches, and what is kept."""

    batch_tokens: int
    """Tokens in a full batch, a multiple of the context."""
    tokens: int = 300_000_000_000
    """Tokens to train on in all."""
    steps: int | None = None
    """Stop after this many steps, if that comes before `tokens`."""
    ramp_from_tokens: int = 32_768
    """Batch at the start of the ramp."""
    ramp_tokens: int = 0
    """The batch grows linearly to full over this many tokens; 0: full from the start."""
    microbatch: int = 0
    """Windows per forward pass over the mesh; gradients add up; the last may be padded. 0: all."""
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3
    """Newest checkpoints kept; the last one always is."""
    only: tuple[str, ...] = ()
    """Parameters to train, by path: layers/qkv, */bias, layers[8:12], position_embedding. Empty:
    all; with LoRA, its factors."""
    noise_scale: bool = False
    """Estimate the gradient noise scale where gradients are accumulated; costs memory traffic."""
    patience: int = 0
    """Evaluations without a better val_loss after which the run ends, at its best checkpoint; 0:
    however many."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "train", batch_tokens=1, tokens=1, ramp_from_tokens=1, ramp_tokens=0,
            microbatch=0, log_every=1, save_every=1, keep=1, patience=0,
        )  # fmt: skip
        check(
            self.steps is None or self.steps >= 1,
            f"--train.steps is {self.steps}: a run takes at least one step. Raise it, or None",
        )


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis: a number; -1 for all that remain; auto, to be chosen by `plan`."""

    data: int | Literal["auto"] = -1
    """Copies of the parameters, each of which reads its own windows."""
    fsdp: int | Literal["auto"] = 1
    """Parts of the parameters, fetched layer by layer; each reads its own windows."""
    tensor: int | Literal["auto"] = 1
    """Parts of each head, MLP and window."""

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        found = list(sizes.values())
        check(
            all(size == "auto" or size == -1 or (size != 0 and size > 0) for size in found),
            f"mesh {sizes}: an axis has 1 or more devices, -1 for the rest, or auto. Change it",
        )
        check(
            found.count(-1) <= 1 and not (-1 in found and "auto" in found),
            f"mesh {sizes}: only one axis can take the rest, and none beside auto. "
            "Give the others a number",
        )


@dataclass(frozen=True)
class Evaluate:
    """What is measured and shown while training."""

    every: int = 1000
    """Steps between validation losses and samples."""
    windows: int = 256
    """Held-out windows per measurement, the same ones each time; 0: all."""
    prompt: str = ""
    """Text a sample starts from; empty: a new document."""
    sample_tokens: int = 128
    tasks: tuple[str, ...] = ()
    """Asked at each evaluation, as `gpt3jax evaluate --beams 0` asks them."""
    shots: tuple[int, ...] = (0, 8)
    """Demonstrations."""
    examples: int = 100
    """Of each task."""

    def __post_init__(self) -> None:
        check_numbers(self, "evaluate", every=1, windows=0, sample_tokens=0, examples=1)
        check(
            all(0 <= shots <= MOST_WINDOWS for shots in self.shots),
            f"--evaluate.shots is {list(self.shots)}: it counts demonstrations. Use 0 or more",
        )
        check(
            not re.search("[\ud800-\udfff]", self.prompt),
            "--evaluate.prompt is not text: its bytes are not UTF-8. Write it in UTF-8",
        )


@dataclass(frozen=True)
class Experiment:
    """One training run, whole."""

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
    """Start from the parameters of a run, RUN or RUN@STEP (the newest); empty: from the seed."""

    def __post_init__(self) -> None:
        batch, context = self.train.batch_tokens, self.model.context
        check(
            re.fullmatch(r"\w[\w.,=+-]{0,99}", self.name) is not None,
            f"--name is {self.name!r}: a run's folder is named so. Use letters, digits and _.,=+-",
        )
        check(
            batch % context == 0,
            f"--train.batch-tokens is {batch}, not a multiple of the context {context}: a batch "
            f"is whole windows. Use {max(1, round(batch / context)) * context}",
        )
        check(
            self.batch_sequences <= MOST_WINDOWS,
            f"--train.batch-tokens is {batch}, {self.batch_sequences:,} windows of {context}: "
            f"over {MOST_WINDOWS:,} are too many to list. Lower it",
        )
        check(
            self.batch_sequences % self.microbatch == 0,
            f"--train.microbatch is {self.microbatch}, but the batch has {self.batch_sequences} "
            "windows: it must divide them. Use a divisor",
        )
        check(0 <= self.seed < 2**32, f"--seed is {self.seed}: it is from 0 to 2^32 - 1. Change it")

    @property
    def batch_sequences(self) -> int:
        """Windows in a full batch."""
        return self.train.batch_tokens // self.model.context

    @property
    def microbatch(self) -> int:
        """Windows per forward pass over the whole mesh."""
        return self.train.microbatch or self.batch_sequences

    def to_json(self) -> str:
        """The resolved experiment as a run stores it."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Experiment:
        """Read what `to_json` wrote.

        Raises:
          ConfigError: the text is not an experiment of this version.
        """
        try:
            return serde.build(Experiment, serde.parse(text))
        except ValueError as error:
            raise ConfigError(f"this is not an experiment: {error}. Mend it") from error

    def identity(self) -> dict[str, Any]:
        """The fields that decide the numbers of a run; two runs that differ here do not mix.

        What only decides how it is computed or shown (mesh, kernels, logging,
        when to stop) is left out and may change at a resume. So are fields that
        have no say, so that runs from before there were such fields are the same.
        """
        fields = dataclasses.asdict(self)
        top = ["name", "mesh", "evaluate"] + ([] if self.init_from else ["init_from"])
        model = ["dtype", "scan_layers", "remat"]
        model += ["activation"] if self.model.activation == "gelu_tanh" else []
        model += ["mup_base"] if self.model.mup_base is None else []
        model += [] if self.model.lora_rank else ["lora_rank", "lora_matrices", "lora_alpha"]
        train = ["tokens", "steps", "microbatch", "log_every", "save_every", "keep", "noise_scale",
                 "patience"]  # fmt: skip
        train += [] if self.train.only else ["only"]
        for group, names in ((fields, top), (fields["model"], model), (fields["train"], train)):
            for name in names:
                del group[name]
        for source in fields["data"]["sources"]:
            del source["path"]
        return fields
