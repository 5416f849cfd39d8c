"""Ablation of attention heads: which of them matter for in-context learning?

Needs      runs/in_context (experiments/in_context.py)
Command    python experiments/ablate_heads.py runs/in_context
Cost       seconds on 2 CPU cores
Result     full model -4.29 nats; without head 4.1, which has the highest induction score (0.66),
           -8.49; without 4.3 -6.04; without 1.3 and 1.1, banded heads in a lower layer, -5.67 and
           -5.54. Without 4.0 the score is better: -0.94. One seed, 2026-11-23

`ablate_head` edits the forward pass of training: the output of the head is zero.
The score is the mean log-probability of the right answers to 40 questions of
`substitution` with 16 demonstrations each.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gpt3jax.checkpoint.load import load_model
from gpt3jax.config import Mesh
from gpt3jax.evals.prompts import build_prompts
from gpt3jax.evals.tasks.patterns import substitution
from gpt3jax.inspect.edits import ablate_head
from gpt3jax.inspect.heads import induction
from gpt3jax.model.gpt3 import forward
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import STYLE


def questions(saved, count=40):
    """Token ids [B, T], and the slice of each answer in the predictions [B, T-1]."""
    task = substitution(count=count)
    prompted = build_prompts(task, 16, saved.tokenizer, saved.model.context)
    pairs = [each.pairs[0] for each in prompted]
    tokens = np.zeros((count, max(len(a) + len(b) for a, b in pairs)), np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        tokens[row, : len(prompt) + len(answer)] = (*prompt, *answer)
    return jnp.asarray(tokens), [slice(len(a) - 1, len(a) + len(b) - 1) for a, b in pairs]


def main():
    parser = argparse.ArgumentParser(description="Ablate each head in turn.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/ablate_heads.png")
    args = parser.parse_args()
    out = args.out or args.run / "ablate_heads.png"
    saved = load_model(args.run, None, make_mesh(Mesh(data=1), jax.devices()[:1]))
    model, (tokens, spans) = saved.model, questions(saved)

    @jax.jit  # Layer and head are traced, so it compiles once.
    def next_token_logprobs(params, layer, head):
        logits = forward(params, tokens, model, edit=ablate_head(layer, head)).logits
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]

    def score_without(layer, head):
        """Mean log-probability of the right answers, nats."""
        rows = np.asarray(next_token_logprobs(saved.params, layer, head))
        return np.mean([row[span].sum() for row, span in zip(rows, spans, strict=True)])

    full = score_without(-1, -1)
    without = np.zeros((model.n_layers, model.n_heads))
    for layer, head in np.ndindex(without.shape):
        without[layer, head] = score_without(layer, head)
    scores = induction(saved.params, model)
    print(f"full model: {full:.2f} nats")
    order = sorted(np.ndindex(without.shape), key=lambda index: without[index])
    for layer, head in (*order[:5], *order[-2:]):
        score, induction_score = without[layer, head], scores[layer, head]
        print(f"without {layer}.{head}: {score:.2f}, induction score {induction_score:.2f}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.5))
        axes = figure.subplots()
        loss, limit = full - without, np.abs(full - without).max()
        image = axes.imshow(loss, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower")
        axes.set(xlabel="head", ylabel="layer", xticks=range(model.n_heads))
        axes.set_yticks(range(model.n_layers))
        axes.grid(False)
        figure.colorbar(image, label="nats lost by ablation")
        figure.savefig(out)
    print(out)


if __name__ == "__main__":
    main()
