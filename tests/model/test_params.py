"""Parameter counts, FLOPs and initial values."""

import math

import jax
import numpy as np
import pytest
from flax import traverse_util

from gpt3jax.config import Model
from gpt3jax.model import param_specs
from gpt3jax.model.init import decayed, init_params


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        (dict(n_layers=1, d_model=4, n_heads=2, d_head=2, vocabulary=10, context=8), 324),
        (dict(n_layers=2, d_model=8, n_heads=2, d_head=4, vocabulary=16, context=4), 1_920),
        (dict(n_layers=2, d_model=64, n_heads=4, d_head=16, vocabulary=256, context=128), 124_672),
        # GPT-2 from the same code, at its context.
        (dict(n_layers=12, d_model=768, n_heads=12, d_head=64, context=1024), 124_439_808),
        # The shapes that Table 2.1 prints for XL and 13B.
        (
            dict(n_layers=24, d_model=2048, n_heads=24, d_head=128, free_head_width=True),
            1_517_123_584,
        ),
        (
            dict(n_layers=40, d_model=5140, n_heads=40, d_head=128, free_head_width=True),
            12_936_488_380,
        ),
    ],
)
def test_counts_are_exact(shape, count):
    assert param_specs.count_params(Model(**shape)) == count


def test_arrays_have_the_shapes_that_are_counted(model):
    arrays = jax.tree.leaves(init_params(jax.random.key(0), model))
    padding = (model.padded_vocabulary - model.vocabulary) * model.d_model
    assert sum(a.size for a in arrays) - padding == param_specs.count_params(model)


def test_flops_of_gpt3_small_are_those_of_the_paper_plus_visible_attention():
    small = Model(n_layers=12, d_model=768, n_heads=12, d_head=64)
    # 0.7412G for the matrices and the tied head, 0.0699G for alternating causal attention.
    assert param_specs.flops_per_token(small) / 1e9 == pytest.approx(0.7412 + 0.0699, abs=1e-4)


@pytest.mark.parametrize(("band", "pairs"), [(None, 2_098_176), (256, 491_648), (128, 254_016)])
def test_visible_pairs_of_a_window(band, pairs):
    assert param_specs.visible_pairs(2048, band) == pairs


def test_initial_values_have_the_published_spread():
    model = Model(n_layers=8, d_model=128, n_heads=8, d_head=16, vocabulary=1000, context=512)
    found = traverse_util.flatten_dict(init_params(jax.random.key(0), model), sep="/")
    residual = 0.02 / math.sqrt(2 * model.n_layers)
    expected = {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "layers/qkv/kernel": 0.02,
        "layers/up/kernel": 0.02,
        "layers/out/kernel": residual,
        "layers/down/kernel": residual,
    }
    for name, value in found.items():
        value = np.asarray(value)[: model.vocabulary if name == "token_embedding" else None]
        if name in expected:
            assert value.std() == pytest.approx(expected[name], rel=0.02), name
            assert abs(value.mean()) < 0.02 * expected[name] * 10
        else:
            assert (value == float(name.endswith("gain"))).all(), name


def test_the_seed_decides_every_value_and_padding_rows_are_zero(model):
    first, again, other = (init_params(jax.random.key(s), model) for s in (0, 0, 1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
    assert all(jax.tree.leaves(same))
    assert not (first["layers"]["qkv"]["kernel"] == other["layers"]["qkv"]["kernel"]).any()
    assert (first["token_embedding"][model.vocabulary :] == 0).all()


def test_only_matrices_and_embeddings_decay(model):
    flags = traverse_util.flatten_dict(decayed(param_specs.param_specs(model)), sep="/")
    assert {name for name, decays in flags.items() if decays} == {
        "token_embedding", "position_embedding", "layers/qkv/kernel", "layers/out/kernel",
        "layers/up/kernel", "layers/down/kernel",
    }  # fmt: skip
