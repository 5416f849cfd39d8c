"""Activation steering: add the difference between two kinds of text to the residual stream.

Needs      runs/tiny (make demo)
Command    python experiments/steer.py runs/tiny
Cost       half a minute on 2 CPU cores
Result     the probability of `raise` rises from 9 % to 15 % at strength 0.5, and is close to 0 at
           -1, where `self` has 14 %; above 1 the text is incoherent. One seed, 2026-11-23

The vector is the mean residual stream after `raise` less that after `return`, at the
middle layer; it is added at every token of a prompt, times a strength. (Turner et
al. 2023, arXiv 2308.10248.)
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
from gpt3jax.inspect.edits import steer
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import COLOURS, STYLE

RAISE = ("    raise", "        raise", "            raise")
RETURN = ("    return", "        return", "            return")
PROMPT = "        if not name:\n            "
WATCHED = ("raise", "return", "self")
STRENGTHS = np.linspace(-2, 2, 9)


def main():
    parser = argparse.ArgumentParser(description="Steer a model along a difference of activations.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/steer.png")
    args = parser.parse_args()
    out = args.out or args.run / "steer.png"
    saved = load_model(args.run, None, make_mesh(Mesh(data=1), jax.devices()[:1]))
    layer = saved.model.n_layers // 2

    def tokens(text):
        return jnp.asarray(saved.tokenizer.encode(text), jnp.int32)[None]

    def last_residual(text):
        captured = capture(saved.params, tokens(text), saved.model, ("residual",))
        return np.asarray(captured.activations["residual"][layer, 0, -1])

    vector = np.mean([*map(last_residual, RAISE)], 0) - np.mean([*map(last_residual, RETURN)], 0)
    watched = [saved.tokenizer.encode(text)[0] for text in WATCHED]
    shares = []
    for strength in STRENGTHS:
        edit = steer(layer, strength * vector)
        output = capture(saved.params, tokens(PROMPT), saved.model, (), edit)
        p = np.asarray(jax.nn.softmax(output.logits[0, -1]))
        shares.append(p[watched])
        likeliest = np.argsort(-p)[:4]
        texts = (f"{saved.tokenizer.decode([int(i)])!r} {p[i]:.0%}" for i in likeliest)
        print(f"{strength:+.1f}: " + ", ".join(texts))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.2))
        axes = figure.subplots()
        for row, name, colour in zip(np.transpose(shares), WATCHED, COLOURS, strict=False):
            axes.plot(STRENGTHS, row, label=repr(name), color=colour)
        axes.set(xlabel="strength", ylabel="probability after 'if not name:'")
        axes.legend()
        figure.savefig(out)
    print(out)


if __name__ == "__main__":
    main()
