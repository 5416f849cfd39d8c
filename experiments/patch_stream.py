"""Activation patching: at which token and layer does the residual stream contain the answer?

Needs      runs/in_context (experiments/in_context.py)
Command    python experiments/patch_stream.py runs/in_context
Cost       seconds on 2 CPU cores
Result     up to layer 3 the answer is at its own token (" to" in its first line: 82 to 102 %
           restored); after layer 4 it is at the last token (100 %). One seed, 2026-11-23

Two prompts differ in one partner (ka to / ka mo) and end with the same question. The
residual stream of the first prompt, at one layer and token, replaces that of the
second; the result is the fraction of the first answer's logit difference that this
restores. (Activation patching; Meng et al. 2022, arXiv 2202.05262.)
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
from gpt3jax.inspect.capture import capture
from gpt3jax.inspect.edits import patch
from gpt3jax.model.gpt3 import forward
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import STYLE

PROMPT = " \n ba ko te mi \n bu ka {} me \n ba ko te mi \n bu ka"
ANSWERS = (" to", " mo")


def main():
    parser = argparse.ArgumentParser(description="Patch the residual stream of a prompt.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/patch_stream.png")
    args = parser.parse_args()
    out = args.out or args.run / "patch_stream.png"
    saved = load_model(args.run, None, make_mesh(Mesh(data=1), jax.devices()[:1]))
    encode, model = saved.tokenizer.encode, saved.model
    texts = [encode(PROMPT.format(answer.strip())) for answer in ANSWERS]
    answers = [encode(answer)[0] for answer in ANSWERS]
    first, second = (jnp.asarray(text, jnp.int32)[None] for text in texts)
    captured = capture(saved.params, first, model, ("residual",))

    @jax.jit  # Layer and token are traced, so it compiles once.
    def difference(stream, layer, token):
        """Logit difference between the answers, in nats."""
        edit = patch("residual", layer, stream, token[None])
        last = forward(saved.params, second, model, edit=edit).logits[0, -1]
        return last[answers[0]] - last[answers[1]]

    after = captured.activations["residual"]
    last = captured.logits[0, -1]
    clean, other = last[answers[0]] - last[answers[1]], difference(after[0], -1, jnp.int32(0))
    shares = np.zeros((model.n_layers, len(texts[0])))
    for layer, token in np.ndindex(shares.shape):
        shares[layer, token] = (difference(after[layer], layer, jnp.int32(token)) - other) / (
            clean - other
        )
    print(f"{ANSWERS[0]} over {ANSWERS[1]}: {clean:+.2f} nats in the first prompt, {other:+.2f}")
    for layer in range(model.n_layers):
        token = shares[layer].argmax()
        piece = saved.tokenizer.decode(texts[0][: token + 1])[-6:]
        share = shares[layer, token]
        print(f"layer {layer}: most is restored at token {token} ({piece!r}): {share:.0%}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.8))
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", aspect="auto")
        names = [saved.tokenizer.decode([token]).strip() or "\u23ce" for token in texts[1]]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="after layer", yticks=range(model.n_layers))
        axes.grid(False)
        figure.colorbar(image, label="answer restored")
        figure.savefig(out)
    print(out)


if __name__ == "__main__":
    main()
