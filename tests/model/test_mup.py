"""muP: the standard parameterisation at its base, and sizes that do not follow the width."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, logits_of, loss_of, randomised
from flax.traverse_util import flatten_dict

from gpt3jax.config import Experiment, Mesh, Model
from gpt3jax.decoding import decode
from gpt3jax.errors import ConfigError
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.inspect.track import _push
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.init import init_params
from gpt3jax.model.logprobs import token_logprobs
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.state import init_sharded_state, partition
from gpt3jax.train.step import compile_train_step

WIDTHS = (32, 96, 256)


def of_width(model, width, mup):
    """Width 32 is the base, and its heads are 8 wide; heads grow with the width."""
    return dataclasses.replace(
        model, n_layers=2, d_model=width, n_heads=4, d_head=width // 4, context=16, band=8,
        mup_base=(32, 8) if mup else None,
    )  # fmt: skip


@pytest.fixture
def tokens(model):
    return jax.random.randint(jax.random.key(3), (4, 16), 0, model.vocabulary)


@pytest.fixture
def windows(model):
    return np.random.default_rng(0).integers(0, model.vocabulary, (1, 4, 17)).astype(np.int32)


def trained(experiment, windows, rate, steps=4):
    """Parameters before and after some steps at one rate, on one batch, and the losses."""
    mesh, losses = make_mesh(Mesh(data=1), jax.devices()[:1]), []
    with jax.set_mesh(mesh):
        step, state = compile_train_step(experiment, mesh), init_sharded_state(experiment, mesh)
        # The step consumes its state.
        before = jax.tree.map(np.array, state.params)
        for _ in range(steps):
            state, metrics = step(state, windows, np.int32(1), np.float32(rate))
            losses.append(float(metrics["loss"]))
    return before, state.params, losses


def run_of(experiment, model):
    return dataclasses.replace(
        experiment, model=model, train=dataclasses.replace(experiment.train, batch_tokens=4 * 16)
    )


def test_at_its_base_it_is_the_standard_model_bit_for_bit(experiment, model, windows):
    runs = [run_of(experiment, of_width(model, 32, mup)) for mup in (False, True)]
    (_, plain, losses), (_, mup, same) = (trained(run, windows, 0.01) for run in runs)
    assert losses == same and len(set(losses)) == 4
    jax.tree.map(np.testing.assert_array_equal, plain, mup)


def test_the_standard_program_has_no_operation_more(model, tokens):
    """The scales are one product in each layer and one division of the head; at the base, none."""
    plain, base, wide = (of_width(model, width, m) for width, m in ((32, 0), (32, 1), (64, 1)))

    def program(model):
        params = jax.eval_shape(partial(init_params, model=model), jax.random.key(0))
        return str(jax.make_jaxpr(partial(forward, model=model))(params, tokens))

    assert program(plain) == program(base)
    scaled, standard = program(wide), program(dataclasses.replace(wide, mup_base=None))
    assert scaled.count("= div") == standard.count("= div") + 1
    assert scaled.count("= mul") == standard.count("= mul") + wide.n_layers


def test_spreads_and_rates_of_every_leaf(model):
    wide = dataclasses.replace(of_width(model, 128, True), lora_rank=2)
    specs, at_base = (
        dict(named_specs(param_specs(wide))),
        dict(named_specs(param_specs(of_width(model, 32, False)))),
    )
    matrices = [f"layers/{name}/kernel" for name in ("qkv", "out", "up", "down")]
    firsts = [f"layers/lora/{name}/a" for name in wide.lora_matrices]
    assert {path for path, spec in specs.items() if spec.rate == 1 / 4} == {*matrices, *firsts}
    assert all(spec.rate in (1, 1 / 4) for spec in specs.values())
    for path, spec in at_base.items():
        expected = spec.std / 2 if path in matrices else spec.std
        assert specs[path].std == expected and specs[path].init == spec.init, path
    assert all(specs[path].std == 128**-0.5 for path in firsts), "already by the width"


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_rate_divides_what_adam_does_and_not_the_decay(experiment, model, lora_rank):
    """Of what is trained, which with LoRA is its factors."""
    model = dataclasses.replace(of_width(model, 128, True), lora_rank=lora_rank)
    experiment = changed(run_of(experiment, model), optimizer={"weight_decay": 0.5})
    params, _ = partition(randomised(model), experiment)

    def update(experiment):
        optimizer = make_optimizer(experiment)
        gradients = jax.tree.map(jnp.ones_like, params)
        return jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]

    standard = dataclasses.replace(experiment, model=dataclasses.replace(model, mup_base=None))
    found, before = (flatten_dict(update(each), sep="/") for each in (experiment, standard))
    values, specs = flatten_dict(params, sep="/"), dict(named_specs(param_specs(model)))
    assert len(found) == (4 if lora_rank else 16)
    for path in found:
        decay = 0.5 * values[path] if path.split("/")[-1] not in ("bias", "gain") else 0.0
        expected = (before[path] - decay) * specs[path].rate
        np.testing.assert_allclose(found[path] - decay, expected, atol=1e-6, err_msg=path)


def folded(params, model):
    """The same function in the standard parameterisation: what an export writes."""
    scale = np.array([math.sqrt(8 / model.d_head), 1, 1], np.float32)[:, None]
    layers = params["layers"]
    qkv = {kind: value * scale for kind, value in layers["qkv"].items()}
    norm = {kind: value * (32 / model.d_model) for kind, value in params["final_norm"].items()}
    folded = {**params, "layers": {**layers, "qkv": qkv}, "final_norm": norm}
    return folded, dataclasses.replace(model, mup_base=None)


@pytest.mark.long
def test_every_way_of_reading_has_its_scales(model, tokens):
    """Training, scoring, decoding, looking: all give what folded parameters give."""
    model = of_width(model, 128, True)
    params = randomised(model)
    plain, standard = folded(params, model)
    expected = logits_of(plain, tokens, standard)[..., : model.vocabulary]
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    unscaled = logits_of(params, tokens, standard)[..., : model.vocabulary]
    assert np.abs(unscaled / 4 - expected).max() > 1e-2, "the scores' scale is there to be seen"

    found = capture(params, tokens, model, ("queries", "keys", "residual", "embedded"))
    same(found.logits, expected)
    other = capture(plain, tokens, standard, ("queries", "keys"))
    weights = [attention_of(each.activations, 1, m) for each, m in
               ((found, model), (other, standard))]  # fmt: skip
    same(*weights)
    windows = jnp.concatenate([tokens, tokens[:, :1]], axis=1)
    same(loss_of(params, windows, model), loss_of(plain, windows, standard))
    same(token_logprobs(params, tokens, model).log_probability,
         token_logprobs(plain, tokens, standard).log_probability)  # fmt: skip
    ready = decode.decoding_params(params, model)
    logits, cache = decode.prefill(ready, tokens[:, :8], jnp.int32(8), model)
    same(logits, expected[:, 7])
    same(decode.decode(ready, cache, tokens[:, 8], model)[0], expected[:, 8])


def test_the_parts_of_a_logit_add_up_to_it(model, tokens):
    model = of_width(model, 128, True)
    params, text = randomised(model), tokens[:1]
    found = capture(params, text, model, ("embedded", "attention", "mlp", "residual"))
    push, constant = _push(params, found.activations, text[0], model)
    logits = jnp.take_along_axis(found.logits[0], text[0][:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(push.sum(0) + constant, logits, rtol=1e-4, atol=1e-4)


def slope(sizes):
    """By which power of the width a size grows: of a straight line in the logarithms."""
    return np.polyfit(np.log2(WIDTHS), np.log2(sizes), 1)[0]


def changes(experiment, model, windows, rate):
    """How far a few steps move what a forward pass computes: root mean squares, by name."""
    before, after, _ = trained(run_of(experiment, model), windows, rate)

    def look(params):
        found = capture(params, windows[0, :, :-1], model, ("attention", "mlp", "residual"))
        last = {name: value[-1] for name, value in found.activations.items()}
        return jax.tree.map(np.asarray, last | {"logits": found.logits})

    moved = jax.tree.map(np.subtract, look(after), look(before))
    return {name: float(np.sqrt(np.square(by).mean())) for name, by in moved.items()}


@pytest.mark.long
def test_coordinate_check(experiment, model, windows):
    """After four steps at one rate, activations and logits moved as far at any width under muP.

    In the standard parameterisation the wider, the further (Yang et al. 2022, figure 5).
    """

    quick = dataclasses.replace(model, scan_layers=True, dense_every=1)  # To compile.

    def slopes(mup):
        found = [changes(experiment, of_width(quick, w, mup), windows, 0.005) for w in WIDTHS]
        return {name: slope([each[name] for each in found]) for name in found[0]}

    standard, mup = slopes(False), slopes(True)
    assert standard["logits"] > 0.5 and min(standard.values()) > 0.5, standard
    assert all(abs(each) < 0.25 for each in mup.values()), mup


@pytest.mark.parametrize("base", [(), (32,), (32, 8, 1), (0, 8), (32, -1)])
def test_a_base_is_two_widths(base):
    with pytest.raises(ConfigError, match=r"--model.mup-base is .* Give both"):
        Model(n_layers=2, d_model=64, n_heads=4, d_head=16, mup_base=base)


def test_runs_from_before_there_was_mup_are_the_same_runs(experiment):
    assert "mup_base" not in experiment.identity()["model"]
    scaled = changed(experiment, model={"mup_base": (16, 4)})
    assert scaled.identity()["model"]["mup_base"] == (16, 4)
    assert Experiment.from_json(scaled.to_json()) == scaled
    values = json.loads(experiment.to_json())
    del values["model"]["mup_base"]
    assert Experiment.from_json(json.dumps(values)) == experiment
