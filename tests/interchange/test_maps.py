"""Names, shapes and layouts between our tree and transformers', without transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import logits_of, randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt3jax.config import Model
from gpt3jax.errors import ConfigError
from gpt3jax.interchange import huggingface
from gpt3jax.interchange.architecture import family_of, from_config, to_config
from gpt3jax.model.param_specs import count_params

GPT2 = {
    "model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024,
    "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
NEO = {
    "model_type": "gpt_neo", "num_layers": 4, "num_heads": 16, "hidden_size": 2048,
    "max_position_embeddings": 2048, "vocab_size": 50257, "intermediate_size": None,
    "window_size": 256, "attention_types": [[["global", "local"], 2]],
}  # fmt: skip


def layer_of(params, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), params["layers"])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_layer_goes_out_and_comes_back_bit_for_bit(model, params, family):
    layer = layer_of(params, 1)
    if family == "gpt_neo":
        layer["qkv"]["bias"] = np.zeros_like(layer["qkv"]["bias"])
    tensors = dict(huggingface.to_layer(family, layer.__getitem__, model))
    expected = huggingface.shapes(family, model)
    assert [(f"transformer.h.1.{name}", x.shape) for name, x in tensors.items()] == [
        item for item in expected.items() if item[0].startswith("transformer.h.1.")
    ]
    back = huggingface.from_layer(family, tensors, model)
    if family == "gpt_neo":
        # d_head is 8: what comes back was rounded once, and is then the same for ever.
        again = dict(huggingface.to_layer(family, back.__getitem__, model))
        np.testing.assert_allclose(back["qkv"]["kernel"], layer["qkv"]["kernel"], rtol=1e-6)
        layer = huggingface.from_layer(family, again, model)
    jax.tree.map(np.testing.assert_array_equal, back, layer)


def test_every_parameter_has_a_tensor_and_the_padding_none(model):
    shapes = huggingface.shapes("gpt2", model)
    assert sum(math.prod(shape) for shape in shapes.values()) == count_params(model)
    without_biases = model.n_layers * 3 * model.d_model
    shapes = huggingface.shapes("gpt_neo", model)
    assert (
        sum(math.prod(shape) for shape in shapes.values()) == count_params(model) - without_biases
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    st.integers(1, 512),
)
def test_query_weights_that_were_read_once_come_back_the_same(values, d_head):
    """In, out, in: bitwise for every width; out, too, where it is a power of 4."""
    theirs = np.float32(values) / 32  # Times the root of 512 it is still a float32.
    ours = huggingface._scaled(theirs, math.sqrt(d_head))
    out = huggingface._scaled(ours, 1 / math.sqrt(d_head))
    np.testing.assert_array_equal(huggingface._scaled(out, math.sqrt(d_head)), ours)
    if math.log2(d_head) % 2 == 0 and not ((theirs != 0) & (abs(theirs) < 1e-30)).any():
        np.testing.assert_array_equal(out, theirs)


def folded(params, model):
    layers = []
    for index in range(model.n_layers):
        read = huggingface.fold(layer_of(params, index).__getitem__, model, index)
        layers.append({name: read(name) for name in params["layers"]})
    assert not any(layer["qkv"]["bias"].any() for layer in layers)
    return {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def test_folding_the_biases_away_changes_no_logit(model, params):
    tokens = np.random.default_rng(0).integers(0, model.vocabulary, (2, model.context))
    before = logits_of(params, tokens, model)[..., : model.vocabulary]
    after = logits_of(folded(params, model), tokens, model)[..., : model.vocabulary]
    dropped = jax.tree.map(jnp.asarray, params)
    dropped["layers"]["qkv"]["bias"] = jnp.zeros_like(params["layers"]["qkv"]["bias"])
    without = logits_of(dropped, tokens, model)[..., : model.vocabulary]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
    assert np.abs(without - before).max() > 0.1, "the biases matter"


def test_without_biases_nothing_is_folded(model, params):
    layer = layer_of(params, 0)
    layer["qkv"]["bias"] = np.zeros_like(layer["qkv"]["bias"])
    read = layer.__getitem__
    assert huggingface.fold(read, model, 0) is read


def test_a_query_bias_that_cannot_be_folded_is_refused(model, params):
    layer = layer_of(params, 0)
    layer["qkv"]["kernel"] = layer["qkv"]["kernel"].copy()
    layer["qkv"]["kernel"][:, :, 0] = 0
    with pytest.raises(ConfigError, match="layer 3: its query bias cannot be folded"):
        huggingface.fold(layer.__getitem__, model, 3)


def test_gpt2_has_the_parameters_that_are_printed_of_it():
    assert count_params(from_config(GPT2)[1]) == 124_439_808


@pytest.mark.parametrize("every", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_a_shape_goes_out_and_comes_back(model, every, activation):
    model = dataclasses.replace(
        model, dense_every=every, activation=activation, scan_layers="auto", init_std=0.02
    )
    config = to_config(model, "float32", 1)
    family, back = from_config(config)
    assert (config["model_type"], family) == (family_of(model),) * 2
    if every == 1:
        back = dataclasses.replace(back, band=model.band)  # Which no layer has.
    assert back == model


def test_a_band_as_wide_as_the_context_is_dense(model):
    assert family_of(dataclasses.replace(model, band=model.context)) == "gpt2"


@pytest.mark.parametrize(("d_model", "n_heads", "d_head"), [(2048, 24, 128), (5140, 40, 128)])
def test_the_shapes_of_xl_and_13b_in_table_2_1_are_refused(d_model, n_heads, d_head):
    odd = Model(2, d_model, n_heads, d_head, dense_every=1, free_head_width=True)
    with pytest.raises(ConfigError, match="GPT-2 and GPT-Neo have no such shape"):
        family_of(odd)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "only GPT-2 .* and GPT-Neo are supported"),
        ({"model_type": ["gpt2"]}, "are supported"),
        ({"n_inner": 1024}, "MLP is 1024 wide"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"mup_output_alpha": 2.0}, "mup_output_alpha"),
        ({"n_head": 7}, "7 heads do not divide"),
        ({"n_head": 0}, "0 heads do not divide"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"n_layer": 2**62}, "--model.n-layers"),
        ({"n_embd": "768"}, "n_embd is"),
        ({"n_positions": None}, "n_positions is null"),
    ],
)
def test_unsupported_gpt2_configs_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        from_config(GPT2 | change)


@pytest.mark.parametrize(
    ("types", "dense_every"),
    [
        ([[["global", "local"], 2]], 2),
        ([[["global"], 4]], 1),
        ([[["global", "local", "local"], 1], [["global"], 1]], 3),
        ([[["global"], 1], [["local"], 3]], 4),
    ],
)
def test_alternating_global_and_local_layers_are_imported(types, dense_every):
    family, model = from_config(NEO | {"attention_types": types})
    assert (family, model.dense_every, model.band) == ("gpt_neo", dense_every, 256)


@pytest.mark.parametrize(
    "types",
    [
        [[["local"], 4]],
        [[["local", "global"], 2]],
        [[["global", "local", "local", "global"], 1], []],
        [[["global", "global", "local", "local"], 1]],
        [[["global", "local"], 1]],
        [[["global", "local"], 10**12]],
        [[["global", "odd"], 2]],
        [["global", 4]],
        [[["global"]]],
        "global",
        [[[["global"]], 4]],
    ],
)
def test_unsupported_layer_patterns_are_refused(types):
    with pytest.raises(ConfigError, match="config.json cannot be imported"):
        from_config(NEO | {"attention_types": types})


def test_randomised_parameters_leave_no_bias_or_gain_at_its_start(model):
    """What the comparisons here rest on."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(randomised(model)):
        if path[-1].key in ("bias", "gain"):
            assert len(np.unique(leaf)) > leaf.size // 2
