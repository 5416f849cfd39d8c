"""The peer: a GPT in PyTorch, trained as fast as plain PyTorch trains one.

One product for queries, keys and values, PyTorch's fused attention, a tied head, fused AdamW with
weight decay on matrices and embeddings, clipping to norm 1, and no logits kept after the loss. On a
GPU the model is compiled by torch.compile, computes in bfloat16 by autocast and multiplies float32
in TF32. The shape is GPT-2's, and GPT-3's with dense layers.

Legend: B windows, T tokens, H heads, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        heads = (B, T, self.n_heads, D // self.n_heads)
        q, k, v = (each.view(heads).transpose(1, 2) for each in self.qkv(x_BTD).split(D, dim=2))
        y_BHTK = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD))
        hidden = functional.gelu(self.up(self.norm_2(x_BTD)), approximate="tanh")
        return x_BTD + self.down(hidden)


class GPT(nn.Module):
    """Returns the mean loss in nats per token."""

    def __init__(self, n_layers: int, n_heads: int, d_head: int, vocabulary: int, context: int):
        super().__init__()
        d_model = n_heads * d_head
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.layers = nn.ModuleList(Layer(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, windows_BT1: Tensor) -> Tensor:
        x_BTD = self.tokens(windows_BT1[:, :-1]) + self.positions.weight
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits_BTV = functional.linear(self.norm(x_BTD), self.tokens.weight)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), windows_BT1[:, 1:].flatten())


def trainer(
    model: GPT, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> Callable[[np.ndarray], Tensor]:
    """Returns a training step on int64 windows (B, T + 1), which does not wait for the GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    torch.set_float32_matmul_precision("high" if on_gpu else "highest")
    model.train().to(device)
    forward = torch.compile(model) if on_gpu else model
    parameters = list(model.parameters())
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)

    def step(windows: np.ndarray) -> Tensor:
        windows_BT1 = torch.from_numpy(windows)
        if on_gpu:
            windows_BT1 = windows_BT1.pin_memory().to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            loss = forward(windows_BT1)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.detach()

    return step
