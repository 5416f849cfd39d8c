"""The same weights give the same numbers in PyTorch, by transformers' GPT-2 and GPT-Neo.

GPT-2 is the peer of dense models; GPT-Neo, which alternates dense and banded
layers but has no q, k, v bias, of the others. Nothing is left at its initial
zero or one, so that no parameter can be forgotten unseen.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import logits_of, loss_of
from flax import traverse_util

from gpt3jax import config
from gpt3jax.config import Experiment, Model
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.interchange.architecture import Family
from gpt3jax.interchange.huggingface import shapes, to_layer
from gpt3jax.model.init import Params
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import compile_train_step

State = dict[str, np.ndarray]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

CONTEXT = 300
"""Three blocks of queries in attention.causal, the last one cut short."""
VOCABULARY = 101
"""Not a multiple of 128: the embedding has padding."""


@dataclass(frozen=True)
class Pair:
    """One model in both libraries."""

    model: Model
    params: Params
    network: Any
    """The peer, a torch module in eval mode with the same weights."""
    state_of_gradients: Callable[[Params], State]
    """Our gradients under the peer's names."""


def gpt2(scan_layers: bool) -> Pair:
    model = Model(
        n_layers=3, d_model=48, n_heads=4, d_head=12, vocabulary=VOCABULARY, context=CONTEXT,
        dense_every=1, dtype="float32", scan_layers=scan_layers,
    )  # fmt: skip
    shape = transformers.GPT2Config(
        vocab_size=model.vocabulary, n_positions=model.context, n_embd=model.d_model,
        n_layer=model.n_layers, n_head=model.n_heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    params = random_params(model)
    network = transformers.GPT2LMHeadModel(shape)
    load(network, state_dict(params, model, "gpt2"))
    return Pair(model, params, network, partial(state_dict, model=model, family="gpt2"))


def gpt_neo(scan_layers: bool) -> Pair:
    model = Model(
        n_layers=4, d_model=48, n_heads=4, d_head=12, vocabulary=VOCABULARY, context=CONTEXT,
        band=20, dense_every=2, dtype="float32", scan_layers=scan_layers,
    )  # fmt: skip
    shape = transformers.GPTNeoConfig(
        vocab_size=model.vocabulary, max_position_embeddings=model.context,
        hidden_size=model.d_model, num_layers=model.n_layers, num_heads=model.n_heads,
        attention_types=[[["global", "local"], model.n_layers // 2]], window_size=model.band,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    params = random_params(model)
    params["layers"]["qkv"]["bias"] = jnp.zeros_like(params["layers"]["qkv"]["bias"])
    network = transformers.GPTNeoForCausalLM(shape)
    load(network, state_dict(params, model, "gpt_neo"))

    def gradients(ours: Params) -> State:
        """Its query weights are ours divided by sqrt(K), so their gradients are multiplied."""
        found = state_dict(ours, model, "gpt_neo")
        return {n: g * model.d_head if "q_proj" in n else g for n, g in found.items()}

    return Pair(model, params, network, gradients)


def state_dict(params: Params, model: Model, family: Family) -> State:
    """Our parameters, or their gradients, under the peer's names."""
    arrays = jax.tree.map(np.asarray, params)
    outer = {
        "wte.weight": arrays["token_embedding"][: model.vocabulary],
        "wpe.weight": arrays["position_embedding"],
        "ln_f.weight": arrays["final_norm"]["gain"],
        "ln_f.bias": arrays["final_norm"]["bias"],
    }
    found = {f"transformer.{name}": value for name, value in outer.items()}
    for index in range(model.n_layers):
        layer = jax.tree.map(operator.itemgetter(index), arrays["layers"])
        for name, value in to_layer(family, layer.__getitem__, model):
            found[f"transformer.h.{index}.{name}"] = value
    assert {name: value.shape for name, value in found.items()} == shapes(family, model)
    return found


def random_params(model: Model) -> Params:
    """Every parameter drawn at random, gains around 1; rows of padding too."""
    rng = np.random.default_rng(1)

    def draw(path, spec):
        noise = rng.normal(0.0, 0.3, spec.shape).astype(np.float32)
        return jnp.asarray(noise + (path[-1] == "gain"))

    return traverse_util.path_aware_map(draw, param_specs(model))


def load(network: Any, state: State) -> None:
    """Give a peer these weights, all of them; its head is tied to its embedding."""
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    found = network.eval().load_state_dict(tensors, strict=False)
    assert found.missing_keys == ["lm_head.weight"] and not found.unexpected_keys


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, shape).astype(np.int32)


def torch_loss(network: Any, windows_BT1: np.ndarray) -> Any:
    windows_BT1 = torch.tensor(windows_BT1).long()
    logits_BTV = network(windows_BT1[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), windows_BT1[:, 1:].flatten())


@pytest.fixture(params=[gpt2, gpt_neo])
def make_pair(request) -> Callable[..., Pair]:
    return request.param


@pytest.fixture(params=[False, True], ids=["unrolled", "scanned"])
def pair(make_pair, request) -> Pair:
    return make_pair(scan_layers=request.param)


@pytest.mark.parametrize("length", [1, 7, 128, 129, CONTEXT])
def test_logits_agree_at_every_length(pair, length):
    tokens = random_tokens(2, length)
    logits = logits_of(pair.params, tokens, pair.model)[..., :VOCABULARY]
    with torch.no_grad():
        expected = pair.network(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_loss_and_all_gradients_agree(pair):
    windows = random_tokens(2, CONTEXT + 1)
    loss, gradients = jax.value_and_grad(loss_of)(pair.params, windows, pair.model)
    expected = torch_loss(pair.network, windows)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
    ours = pair.state_of_gradients(gradients)
    for name, parameter in pair.network.named_parameters():
        theirs = parameter.grad.numpy()
        worst = np.abs(ours.pop(name) - theirs).max() / np.abs(theirs).max()
        assert worst < 1e-4, f"{name} differs by {worst:.1e} of its largest gradient"
    assert not ours
    assert not gradients["token_embedding"][VOCABULARY:].any()


@pytest.mark.parametrize("microbatch", [4, 2], ids=["whole batch", "microbatches"])
def test_three_optimizer_steps_agree(microbatch):
    pair = gpt2(scan_layers=False)
    experiment = Experiment(
        "parity",
        pair.model,
        config.Data((config.Source("none", "none"),)),
        config.Schedule(peak_learning_rate=1.0),
        config.Train(batch_tokens=4 * CONTEXT, microbatch=microbatch),
        # Large decay and steps, so that a mistake shows; large epsilon, since the gradient of
        # the k bias is rounding noise around zero, which Adam would blow up to whole steps.
        config.AdamW(clip_norm=2.0, weight_decay=0.5, epsilon=1e-3),
    )
    batches = random_tokens(3, 4, CONTEXT + 1)
    rates = [0.03, 0.02, 0.01]
    start = state_dict(pair.params, pair.model, "gpt2")
    params, norms = our_steps(experiment, pair.params, batches, rates)
    expected_norms = torch_steps(experiment.optimizer, pair.network, batches, rates)

    assert min(norms) < experiment.optimizer.clip_norm < max(norms), "clipped and not clipped"
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-4)
    ours = state_dict(params, pair.model, "gpt2")
    for name, parameter in pair.network.named_parameters():
        theirs = parameter.detach().numpy()
        assert np.abs(theirs - start[name]).max() > 1e-2, f"{name} hardly moved"
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=1e-4, err_msg=name)


def our_steps(
    experiment: Experiment, params: Params, batches: np.ndarray, rates: list[float]
) -> tuple[Params, list[float]]:
    """Parameters after a step per batch, and the gradient norm of each."""
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    norms = []
    with jax.set_mesh(mesh):
        params = jax.tree.map(jnp.copy, params)
        state = TrainState(params, make_optimizer(experiment).init(params))
        step = compile_train_step(experiment, mesh)
        for windows, rate in zip(batches, rates, strict=True):
            windows = windows.reshape(-1, experiment.microbatch, CONTEXT + 1)
            state, metrics = step(state, windows, jnp.int32(len(windows)), jnp.float32(rate))
            norms.append(float(metrics["grad_norm"]))
    return state.params, norms


def torch_steps(
    optimizer: config.AdamW, network: Any, batches: np.ndarray, rates: list[float]
) -> list[float]:
    """Train the peer with torch's own clipping and AdamW; the gradient norm of each step."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
    )
    norms = []
    for windows, rate in zip(batches, rates, strict=True):
        for group in adam.param_groups:
            group["lr"] = rate
        torch_loss(network, windows).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), optimizer.clip_norm)
        norms.append(norm.item())
        adam.step()
        adam.zero_grad()
    return norms


@pytest.mark.parametrize("prompt_length", [1, 5, 40])
def test_greedy_cached_generation_gives_the_same_tokens(make_pair, prompt_length):
    pair = make_pair(scan_layers=False)
    prompt = random_tokens(prompt_length)
    generator = Generator(
        pair.params, pair.model, SimpleNamespace(end_of_text=0, vocabulary=VOCABULARY)
    )
    rows = generator.tokens(prompt, new_tokens=32, sampling=Sampling(temperature=0))
    ours = [int(token) for (token,) in rows]
    with torch.no_grad():
        theirs = pair.network.generate(
            torch.tensor(prompt).long()[None], max_new_tokens=32, do_sample=False, pad_token_id=0
        )[0, prompt_length:].tolist()
    assert len(set(theirs)) > 6, "a text that repeats itself shows little"
    assert ours == theirs
