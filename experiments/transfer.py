"""Transfer of the best learning rate from narrow to wide models, with and without muP.

Data       the standard library of the running Python, prepared by this command
Command    python experiments/transfer.py
Source     Figure 1 of Yang et al. 2022 (arXiv 2203.03466), in miniature
Result     best rates at widths 32, 64, 128 and 256: standard 6.8, 5.8, 5.0 and 1.8e-3, a ratio of
           3.8; muP 3.4, 4.8, 5.0 and 4.5e-3, a ratio of 1.5. Losses at the best rates: standard
           4.21, 3.91, 3.77 and 3.70 nats/token, muP 3.93, 3.83, 3.77 and 3.73. Two seeds,
           2026-11-23
Cost       26 minutes on 2 heavily shared CPU cores; 84 runs of 102,400 tokens

Models have two layers, four heads and widths from 32 to 256 by doubling; heads and MLPs grow with
the width, so that every rule of muP (gpt3jax/model/mup.py) applies. All train for the same steps,
with the same seeds, at rates a factor of 2 apart. The base width is tiny.py's, 128, where both
parameterisations are equal and run once. The best rate of a width is the vertex of a parabola, in
log2 of the rate, through the lowest mean loss and its two neighbours. Losses are appended to a
file, and stored ones are not computed again.

Earlier attempts. With 20 rather than 80 warm-up steps (one seed), rates of 2^-8 and above ended
between 4.5 and 5.2 nats at width 32, and neither parameterisation's best rate moved by more than
1.7x up to width 128. With a base width of 32 (150 steps, 15 of warm-up, one seed), the best rate
from width 32 to 128 moved by 1.2x with muP and 4.1x without, but an init_std of 0.02 is small for
this base width, and width 128 ended at 4.59 nats with muP and 4.01 without.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gpt3jax.config import Data, Experiment, Mesh, Model, Schedule, Source, Train
from gpt3jax.data.loader import held_out, windows
from gpt3jax.data.manifest import TOKENIZER
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.perplexity import perplexity, token_lengths
from gpt3jax.model.init import init_params
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import COLOURS, STYLE
from gpt3jax.train.schedules import learning_rate
from gpt3jax.train.state import with_fresh_moments
from gpt3jax.train.step import compile_train_step

WIDTHS = (32, 64, 128, 256)
HEADS = 4
BASE = 128, 128 // HEADS
RATES = tuple(2.0**power for power in range(-11, -5))
SEEDS = (0, 1)
STEPS, WARMUP, BATCH, CONTEXT, VOCABULARY = 200, 80, 8, 64, 512
HELD_OUT = 256
"""Number of held-out windows."""


def experiment(width, mup, rate, seed, data):
    tokens = STEPS * BATCH * CONTEXT
    return Experiment(
        name="transfer",
        model=Model(
            n_layers=2,
            d_model=width,
            n_heads=HEADS,
            d_head=width // HEADS,
            context=CONTEXT,
            vocabulary=VOCABULARY,
            band=CONTEXT // 4,
            mup_base=BASE if mup else None,
        ),
        data=Data(sources=(Source("python-library", data),)),
        schedule=Schedule(rate, warmup_tokens=WARMUP * tokens // STEPS, decay_tokens=tokens),
        train=Train(batch_tokens=BATCH * CONTEXT, tokens=tokens),
        seed=seed,
    )


def losses(width, mup, points, data):
    """Train a model at each (rate, seed); yield its validation loss, nats/token."""
    configure = partial(experiment, width, mup, data=data)
    first = configure(RATES[0], SEEDS[0])
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: with_fresh_moments(init_params(key, first.model), first))
        # The learning rate is an argument of the step, so it compiles once.
        step = compile_train_step(first, mesh)
        validation = held_out(first.data, HELD_OUT, CONTEXT)
        tokenizer = Tokenizer.load(Path(data) / TOKENIZER)
        lengths = token_lengths(tokenizer, first.model.padded_vocabulary)
        for rate, seed in points:
            config = configure(rate, seed)
            state, order = make(jax.random.key(seed)), windows(config.data, seed, CONTEXT)
            for start in range(0, STEPS * BATCH, BATCH):
                batch = np.stack([order[i] for i in range(start, start + BATCH)])[None]
                now = np.float32(learning_rate((start + BATCH) * CONTEXT, config.schedule))
                state, _ = step(state, batch, np.int32(1), now)
            measured = perplexity(state.params, first.model, mesh, validation, lengths)
            assert measured is not None  # No callback stops it.
            yield measured.per_token


def fill(file, data):
    """Losses by (mup, width, rate, seed), from the file or computed and appended to it."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    results = {(r["mup"], r["width"], r["rate"], r["seed"]): r["loss"] for r in rows}
    for width in WIDTHS:
        for mup in (False, True)[: 1 if width == BASE[0] else 2]:
            points = [(r, s) for s in SEEDS for r in RATES if (mup, width, r, s) not in results]
            for (rate, seed), loss in zip(points, losses(width, mup, points, data), strict=True):
                row = {"mup": mup, "width": width, "rate": rate, "seed": seed, "loss": loss}
                results[mup, width, rate, seed] = loss
                with file.open("a") as opened:
                    opened.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    return results


def curve(results, mup, width, seeds=SEEDS):
    """Mean losses over the seeds, by rate."""
    mup = mup and width != BASE[0]
    return np.array([np.mean([results[mup, width, rate, s] for s in seeds]) for rate in RATES])


def best(loss):
    """The rate and the loss at the vertex of a parabola through the minimum and its neighbours."""
    middle = int(np.clip(np.argmin(loss), 1, len(loss) - 2))
    points = slice(middle - 1, middle + 2)
    x = np.log2(RATES[points])
    a, b, c = np.polyfit(x, loss[points], 2)
    vertex = float(np.clip(-b / (2 * a), x[0], x[-1]))
    return 2**vertex, a * vertex**2 + b * vertex + c


def draw(results, out):
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.7))
        for axes, mup in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
            rates = []
            for width, colour in zip(WIDTHS, COLOURS, strict=False):
                loss = curve(results, mup, width)
                rate, lowest = best(loss)
                rates.append(rate)
                axes.plot(RATES, loss, color=colour, label=f"width {width}")
                axes.plot(rate, lowest, "o", color=colour)
                for seed in SEEDS:
                    axes.plot(RATES, curve(results, mup, width, [seed]), ".", color=colour, ms=3)
            moved = max(rates) / min(rates)
            name = "muP" if mup else "standard"
            axes.set_title(f"{name}: the best rate moves by {moved:.1f}x", fontsize=10.5)
            axes.set(xlabel="peak learning rate")
            axes.set_xscale("log", base=2)
            print(f"{name}: moves by {moved:.2f}x: " + ", ".join(f"{r:.2e}" for r in rates))
        figure.axes[0].set_ylabel("validation loss, nats/token")
        figure.axes[0].legend()
        figure.savefig(out)


def main():
    parser = argparse.ArgumentParser(description="Best learning rates with and without muP.")
    parser.add_argument("--losses", type=Path, default=Path("runs/transfer.jsonl"))
    parser.add_argument("--data", default="data/transfer")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer.png"))
    args = parser.parse_args()
    args.losses.parent.mkdir(parents=True, exist_ok=True)
    prepare("python-library", args.data, context=CONTEXT, vocabulary=VOCABULARY)
    draw(fill(args.losses, args.data), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
