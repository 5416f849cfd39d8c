"""A model's shape as transformers writes it, `config.json`, and as we do.

Dense models are GPT-2 there, models with banded layers GPT-Neo. What neither
can express, or we cannot, is refused in words rather than mapped to something
near. Importing this file does not import jax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gpt3jax import serde
from gpt3jax.config import Activation, Model
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count

Family = Literal["gpt2", "gpt_neo"]
CLASSES: dict[Family, str] = {"gpt2": "GPT2LMHeadModel", "gpt_neo": "GPTNeoForCausalLM"}
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}  # fmt: skip
NAMES_OF_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
NORM_EPSILON = 1e-5
"""Of our layer norm (model/layers.py)."""


@dataclass(frozen=True)
class _Gpt2:
    """What decides the numbers of a GPT-2, with transformers' defaults."""

    n_layer: Count = 12
    n_head: Count = 12
    n_embd: Count = 768
    n_positions: Count = 1024
    vocab_size: Count = 50_257
    n_inner: Count | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = NORM_EPSILON
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class _GptNeo:
    """The same of a GPT-Neo."""

    num_layers: Count = 24
    num_heads: Count = 16
    hidden_size: Count = 2048
    max_position_embeddings: Count = 2048
    vocab_size: Count = 50_257
    intermediate_size: Count | None = None
    window_size: Count = 256
    attention_types: tuple[Any, ...] = ((("global", "local"), 12),)
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = NORM_EPSILON
    tie_word_embeddings: bool = True


def family_of(model: Model) -> Family:
    """What a model is in transformers.

    Raises:
      ConfigError: neither family has such heads.
    """
    width = model.n_heads * model.d_head
    if width != model.d_model:
        raise ConfigError(
            f"{model.n_heads} heads of {model.d_head} are {width} wide, the model {model.d_model}: "
            "GPT-2 and GPT-Neo have no such shape (Table 2.1 prints it for XL and 13B). It cannot "
            "be exported; train the shape that adds up"
        )
    return "gpt2" if all(map(model.is_dense, range(model.n_layers))) else "gpt_neo"


def to_config(model: Model, dtype: str, end_of_text: int) -> dict[str, Any]:
    """The content of config.json.

    Args:
      model: whose.
      dtype: of the weights, as `float32`.
      end_of_text: the token that ends a document.
    """
    family = family_of(model)
    common = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "dtype": dtype,
        "vocab_size": model.vocabulary,
        "activation_function": NAMES_OF_ACTIVATIONS[model.activation],
        "layer_norm_epsilon": NORM_EPSILON,
        "initializer_range": model.init_std,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": True,
        "use_cache": True,
    }
    if family == "gpt2":
        return common | {
            "n_layer": model.n_layers, "n_head": model.n_heads, "n_embd": model.d_model,
            "n_inner": model.d_ff, "n_positions": model.context,
            "n_ctx": model.context,  # The same: llama.cpp's converter asks by this name.
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        }  # fmt: skip
    kinds = ["global" if model.is_dense(i) else "local" for i in range(model.n_layers)]
    return common | {
        "num_layers": model.n_layers, "num_heads": model.n_heads, "hidden_size": model.d_model,
        "intermediate_size": model.d_ff, "max_position_embeddings": model.context,
        "window_size": model.band, "attention_types": [[kinds, 1]], "attention_layers": kinds,
        "attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0,
    }  # fmt: skip


def from_config(config: dict[str, Any]) -> tuple[Family, Model]:
    """The family and shape of a config.json.

    Raises:
      ConfigError: it is of another family, or asks for what we do not have.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise ConfigError(
            f"model_type is {str(family)[:40]!r}: GPT-2 (Cerebras-GPT, too) and GPT-Neo are read. "
            "Give such a folder"
        )
    try:
        return family, (_from_gpt2 if family == "gpt2" else _from_gpt_neo)(config)
    except ValueError as error:
        raise ConfigError(f"config.json cannot be taken over: {error}. Get it again") from error


def _from_gpt2(config: dict[str, Any]) -> Model:
    found = _known(_Gpt2, config)
    _check_same(
        found, config, found.n_embd, found.n_inner,
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
    )  # fmt: skip
    return _model(
        found.n_layer, found.n_embd, found.n_head, found.vocab_size, found.n_positions,
        found.activation_function, dense_every=1,
    )  # fmt: skip


def _from_gpt_neo(config: dict[str, Any]) -> Model:
    found = _known(_GptNeo, config)
    _check_same(found, config, found.hidden_size, found.intermediate_size)
    return _model(
        found.num_layers, found.hidden_size, found.num_heads, found.vocab_size,
        found.max_position_embeddings, found.activation_function, band=max(1, found.window_size),
        dense_every=_dense_every(_kinds(found)),
    )  # fmt: skip


def _known(kind: Any, config: dict[str, Any]) -> Any:
    """The fields of a config that decide numbers; others say how it was trained or is shown."""
    names = kind.__dataclass_fields__
    return serde.build(kind, {name: config[name] for name in names if name in config})


def _check_same(
    found: _Gpt2 | _GptNeo, config: dict[str, Any], width: int, inner: int | None, **fixed: bool
) -> None:
    """Refuse what our architecture does not have."""
    if inner not in (None, 4 * width):
        raise ValueError(f"its MLP is {inner} wide, ours is four times the model's {width}")
    if found.layer_norm_epsilon != NORM_EPSILON:
        raise ValueError(f"layer_norm_epsilon is {found.layer_norm_epsilon}, ours {NORM_EPSILON}")
    if found.activation_function not in ACTIVATIONS:
        raise ValueError(
            f"activation_function is {found.activation_function[:40]!r}, ours {list(ACTIVATIONS)}"
        )
    for name, value in {"tie_word_embeddings": True, **fixed}.items():
        if getattr(found, name) != value:
            raise ValueError(f"{name} is {getattr(found, name)}, in our models it is {value}")
    # Cerebras-GPT's muP variants multiply here; transformers' own GPT-2 knows no such fields.
    scales = [name for name in config if name.startswith("mup_") or name.endswith("_scale")]
    if scales:
        raise ValueError(f"it has {scales[0][:40]}, which our models do not")


def _model(
    n_layers: int, d_model: int, n_heads: int, vocabulary: int, context: int, activation: str,
    **bands: int,
) -> Model:  # fmt: skip
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"{n_heads} heads do not divide a width of {d_model}")
    return Model(
        n_layers, d_model, n_heads, d_model // n_heads, vocabulary, context,
        activation=ACTIVATIONS[activation], **bands,
    )  # fmt: skip


def _kinds(found: _GptNeo) -> list[str]:
    """`global` or `local` for each layer."""
    kinds: list[str] = []
    groups = serde.build(tuple[tuple[Any, ...], ...], found.attention_types, "attention_types")
    for group in groups:
        if len(group) != 2:
            raise ValueError("attention_types is not of lists and how often each is repeated")
        repeated = serde.build(tuple[str, ...], group[0], "attention_types")
        count = serde.build(Count, group[1], "attention_types")
        kinds += repeated * min(count, found.num_layers)
        if len(kinds) > found.num_layers:
            break
    if len(kinds) != found.num_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types names {len(kinds)} layers of {found.num_layers}")
    return kinds


def _dense_every(kinds: list[str]) -> int:
    """Each how-many-th layer is global, from the first on."""
    for every in range(1, len(kinds) + 1):
        if kinds == ["local" if i % every else "global" for i in range(len(kinds))]:
            return every
    raise ValueError(
        "its local layers do not alternate as ours: the first is global, and then every so many"
    )
