"""Conversion between `Model` and transformers' config.json.

Dense models are converted to GPT-2 and models with banded layers to GPT-Neo. Settings without an
exact equivalent raise an error; they are never approximated. Importing this module does not
import jax.
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
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}
ACTIVATION_NAMES: dict[Activation, str] = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
NORM_EPSILON = 1e-5
"""Epsilon of our layer norm (model/layers.py)."""


@dataclass(frozen=True)
class _Gpt2:
    """The fields of a GPT-2 config that affect its outputs, with transformers' defaults."""

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
    """The fields of a GPT-Neo config that affect its outputs, with transformers' defaults."""

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
    """The family of a model in transformers.

    Raises:
      ConfigError: the heads do not split d_model, which neither family supports.
    """
    width = model.n_heads * model.d_head
    if width != model.d_model:
        raise ConfigError(
            f"n_heads {model.n_heads} x d_head {model.d_head} = {width}, not d_model "
            f"{model.d_model}: GPT-2 and GPT-Neo have no such shape (Table 2.1 has it for XL and "
            "13B), so it cannot be exported. Train a shape whose heads split d_model"
        )
    return "gpt2" if all(map(model.is_dense, range(model.n_layers))) else "gpt_neo"


def to_config(model: Model, dtype: str, end_of_text: int) -> dict[str, Any]:
    """The contents of config.json.

    Args:
      model: the model.
      dtype: dtype of the weights, e.g. `float32`.
      end_of_text: id of the end-of-text token.
    """
    family = family_of(model)
    common = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "dtype": dtype,
        "vocab_size": model.vocabulary,
        "activation_function": ACTIVATION_NAMES[model.activation],
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
            "n_ctx": model.context,  # llama.cpp's converter reads the context by this name.
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
    """The family and architecture of a config.json.

    Raises:
      ConfigError: the family or one of the settings is not supported.
    """
    family = config.get("model_type")
    if family not in ("gpt2", "gpt_neo"):
        raise ConfigError(
            f"model_type is {str(family)[:40]!r}: only GPT-2 (including Cerebras-GPT) and GPT-Neo "
            "are supported. Give such a folder"
        )
    try:
        return family, (_from_gpt2 if family == "gpt2" else _from_gpt_neo)(config)
    except ValueError as error:
        raise ConfigError(f"config.json cannot be imported: {error}. Get it again") from error


def _from_gpt2(config: dict[str, Any]) -> Model:
    fields = _build(_Gpt2, config)
    _check_supported(
        fields,
        config,
        fields.n_embd,
        fields.n_inner,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return _model(
        fields.n_layer,
        fields.n_embd,
        fields.n_head,
        fields.vocab_size,
        fields.n_positions,
        fields.activation_function,
        dense_every=1,
    )


def _from_gpt_neo(config: dict[str, Any]) -> Model:
    fields = _build(_GptNeo, config)
    _check_supported(fields, config, fields.hidden_size, fields.intermediate_size)
    return _model(
        fields.num_layers,
        fields.hidden_size,
        fields.num_heads,
        fields.vocab_size,
        fields.max_position_embeddings,
        fields.activation_function,
        band=max(1, fields.window_size),
        dense_every=_dense_every(_kinds(fields)),
    )


def _build(kind: Any, config: dict[str, Any]) -> Any:
    """Build a dataclass from the fields of a config that it declares; others are ignored."""
    names = kind.__dataclass_fields__
    return serde.build(kind, {name: config[name] for name in names if name in config})


def _check_supported(
    fields: _Gpt2 | _GptNeo, config: dict[str, Any], width: int, inner: int | None, **fixed: bool
) -> None:
    """Raise ValueError for settings that our architecture does not support."""
    if inner not in (None, 4 * width):
        raise ValueError(f"its MLP is {inner} wide, ours is four times d_model {width}")
    if fields.layer_norm_epsilon != NORM_EPSILON:
        raise ValueError(f"layer_norm_epsilon is {fields.layer_norm_epsilon}, ours {NORM_EPSILON}")
    if fields.activation_function not in ACTIVATIONS:
        raise ValueError(
            f"activation_function is {fields.activation_function[:40]!r}, ours {list(ACTIVATIONS)}"
        )
    for name, value in {"tie_word_embeddings": True, **fixed}.items():
        if getattr(fields, name) != value:
            raise ValueError(f"{name} is {getattr(fields, name)}, in our models it is {value}")
    # The muP variants of Cerebras-GPT scale activations by fields that GPT-2 does not have.
    scales = [name for name in config if name.startswith("mup_") or name.endswith("_scale")]
    if scales:
        raise ValueError(f"it has {scales[0][:40]}, which our models do not")


def _model(
    n_layers: int,
    d_model: int,
    n_heads: int,
    vocabulary: int,
    context: int,
    activation: str,
    *,
    dense_every: int,
    band: int = Model.band,
) -> Model:
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"{n_heads} heads do not divide a width of {d_model}")
    return Model(
        n_layers,
        d_model,
        n_heads,
        d_model // n_heads,
        vocabulary,
        context,
        activation=ACTIVATIONS[activation],
        band=band,
        dense_every=dense_every,
    )


def _kinds(fields: _GptNeo) -> list[str]:
    """`global` or `local` for each layer."""
    kinds: list[str] = []
    groups = serde.build(tuple[tuple[Any, ...], ...], fields.attention_types, "attention_types")
    for group in groups:
        if len(group) != 2:
            raise ValueError("attention_types is not a list of pairs: layer types, repetitions")
        repeated = serde.build(tuple[str, ...], group[0], "attention_types")
        count = serde.build(Count, group[1], "attention_types")
        kinds += repeated * min(count, fields.num_layers)
        if len(kinds) > fields.num_layers:
            break
    if len(kinds) != fields.num_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types names {len(kinds)} layers of {fields.num_layers}")
    return kinds


def _dense_every(kinds: list[str]) -> int:
    """The period of global layers, of which the first layer must be one."""
    for every in range(1, len(kinds) + 1):
        if kinds == ["local" if i % every else "global" for i in range(len(kinds))]:
            return every
    raise ValueError(
        "its global layers are not evenly spaced from the first layer on, as in our models"
    )
