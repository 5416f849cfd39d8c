"""Our parameter tree under the names and layouts of transformers, as numpy arrays.

The maps only rename, cut, reorder and scale: what holds for the parameters
holds for their gradients. Rows that pad the vocabulary are left out.

Legend: D model width, H heads, Z query, key or value, K head width.
"""

import operator
from collections.abc import Iterator

import jax
import numpy as np

from gpt3jax.config import Model
from gpt3jax.model.params import Params

State = dict[str, np.ndarray]


def to_gpt2_state_dict(params: Params, model: Model) -> State:
    """For GPT2LMHeadModel: kernels as they are [in, out]; all q, then all k, then all v."""
    state = _outer(params, model)
    for index, layer in _layers(params, model):
        qkv_kernel_DZHK = layer["qkv"]["kernel"].swapaxes(1, 2)
        qkv_bias_ZHK = layer["qkv"]["bias"].swapaxes(0, 1)
        state |= _under(
            f"transformer.h.{index}.",
            {
                **_norm("ln_1", layer["norm_1"]),
                "attn.c_attn.weight": qkv_kernel_DZHK.reshape(model.d_model, -1),
                "attn.c_attn.bias": qkv_bias_ZHK.reshape(-1),
                "attn.c_proj.weight": layer["out"]["kernel"].reshape(-1, model.d_model),
                "attn.c_proj.bias": layer["out"]["bias"],
                **_norm("ln_2", layer["norm_2"]),
                "mlp.c_fc.weight": layer["up"]["kernel"],
                "mlp.c_fc.bias": layer["up"]["bias"],
                "mlp.c_proj.weight": layer["down"]["kernel"],
                "mlp.c_proj.bias": layer["down"]["bias"],
            },
        )
    return state


def to_gpt_neo_state_dict(params: Params, model: Model, query_scale: float) -> State:
    """For GPTNeoForCausalLM: kernels transposed to [out, in]; q, k and v have no bias.

    GPT-Neo does not divide scores by sqrt(K): `query_scale` is K ** -0.5 for
    parameters, and its inverse for gradients.
    """
    state = _outer(params, model)
    for index, layer in _layers(params, model):
        qkv_DHZK = layer["qkv"]["kernel"]
        q, k, v = (qkv_DHZK[:, :, z].reshape(model.d_model, -1).T for z in range(3))
        out = layer["out"]["kernel"].reshape(-1, model.d_model).T
        state |= _under(
            f"transformer.h.{index}.",
            {
                **_norm("ln_1", layer["norm_1"]),
                "attn.attention.q_proj.weight": q * query_scale,
                "attn.attention.k_proj.weight": k,
                "attn.attention.v_proj.weight": v,
                "attn.attention.out_proj.weight": out,
                "attn.attention.out_proj.bias": layer["out"]["bias"],
                **_norm("ln_2", layer["norm_2"]),
                "mlp.c_fc.weight": layer["up"]["kernel"].T,
                "mlp.c_fc.bias": layer["up"]["bias"],
                "mlp.c_proj.weight": layer["down"]["kernel"].T,
                "mlp.c_proj.bias": layer["down"]["bias"],
            },
        )
    return state


def _outer(params: Params, model: Model) -> State:
    """Embeddings and final norm; the head is tied to the token embedding."""
    token_embedding = np.asarray(params["token_embedding"])[: model.vocabulary]
    return {
        "transformer.wte.weight": token_embedding,
        "transformer.wpe.weight": np.asarray(params["position_embedding"]),
        **_norm("transformer.ln_f", params["final_norm"]),
    }


def _layers(params: Params, model: Model) -> Iterator[tuple[int, Params]]:
    """The index and the arrays of each layer, cut out of the stacked ones."""
    stacked = jax.tree.map(np.asarray, params["layers"])
    for index in range(model.n_layers):
        yield index, jax.tree.map(operator.itemgetter(index), stacked)


def _norm(name: str, norm: Params) -> State:
    gain, bias = np.asarray(norm["gain"]), np.asarray(norm["bias"])
    return {f"{name}.weight": gain, f"{name}.bias": bias}


def _under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}
