"""A scaling law of loss with parameters, tokens and compute, from models at matched compute.

Data       gpt3jax data prepare --corpus python-library --context 128 --vocabulary 512 \\
               --out data/scaling-law
Command    gpt3jax sweep experiments/scaling_law.py --sampler grid --trials 13 --pruner none
           gpt3jax report --scaling-law sweeps/scaling_law/trial-*
Source     Figure 3.1 of Brown et al. 2020; compute-matched sizes ("IsoFLOP profiles") as in
           Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2
Result     L = 1.21 + 16.8 N^-0.357 + 54 D^-0.245 from 12 runs. It predicts 2.671 nats/token for
           the held-out run, at four times their compute, which had 2.501. The loss of one run
           dropped suddenly, which no smooth law predicts.
Cost       0.45 worker-hours, each worker one CPU core, for sizes from 1e4 to 4e5

Each budget of training FLOPs has three sizes around the one that sees `RATIO` tokens per
parameter. One run at four times the largest budget is held out from the fit. At RATIO,
1e7 parameters take 6e15 FLOPs. For a pod, increase BUDGETS, set your data, and pass a
`--storage` that all hosts can write.

The learning rate was the best of 20 at 1e5 parameters (sweep_learning_rate.py), and about
the best at 8e5 (tiny.py); above 1e6 it decreases like the paper's, to 6e-4 at 125M.
"""

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train
from gpt3jax.model.param_specs import flops_per_token

BUDGETS = (5e10, 2e11, 8e11, 3.2e12)
"""Training FLOPs per run."""
HELD_OUT = 4 * BUDGETS[-1]
RATIO = 10
CONTEXT, VOCABULARY, BATCH = 128, 512, 8 * 128

SIZES = {
    # Parameters without embeddings, 12 L d^2: layers L and width d.
    12_288: (1, 32), 24_576: (2, 32), 55_296: (2, 48), 98_304: (2, 64), 230_400: (3, 80),
    442_368: (4, 96), 786_432: (4, 128), 1_536_000: (5, 160), 2_654_208: (6, 192),
    6_291_456: (8, 256), 9_830_400: (8, 320), 84_934_656: (12, 768), 301_989_888: (24, 1024),
    1_207_959_552: (24, 2048),
}  # fmt: skip


def model(size: int) -> Model:
    layers, width = SIZES[size]
    d_head = 16 if width < 512 else 64
    return Model(
        n_layers=layers,
        d_model=width,
        n_heads=width // d_head,
        d_head=d_head,
        context=CONTEXT,
        vocabulary=VOCABULARY,
        band=CONTEXT // 4,
    )


def tokens(size: int, flops: float) -> int:
    """Training tokens for a budget of FLOPs, rounded to complete batches."""
    return round(flops / flops_per_token(model(size)) / BATCH) * BATCH


def points() -> dict[str, tuple[int, float]]:
    """Size and budget of each run, by name; the last one is held out."""
    runs = {}
    for flops in (*BUDGETS, HELD_OUT):
        ideal = (flops / 6 / RATIO) ** 0.5
        closest = sorted(SIZES, key=lambda size: abs(size / ideal - ideal / size))
        for size in sorted(closest[: 1 if flops == HELD_OUT else 3]):
            runs[f"{size}@{flops:.1e}"] = size, flops
    return runs


def experiment() -> Experiment:
    size = 98_304
    count = tokens(size, BUDGETS[1])
    return Experiment(
        name="scaling_law",
        model=model(size),
        data=Data(sources=(Source("python-library", "data/scaling-law"),)),
        schedule=Schedule(learning_rate(size), warmup_tokens=count // 20, decay_tokens=count),
        train=Train(batch_tokens=BATCH, tokens=count, log_every=10, save_every=500, keep=1),
        evaluate=Evaluate(every=250, windows=256, sample_tokens=0),
    )


def learning_rate(size: int) -> float:
    return 3.5e-3 * max(1.0, size / 1e6) ** -0.4


def space(trial):
    size, flops = points()[trial.suggest_categorical("point", list(points()))]
    shape, count = model(size), tokens(size, flops)
    return {
        "model.n-layers": shape.n_layers,
        "model.d-model": shape.d_model,
        "model.n-heads": shape.n_heads,
        "model.d-head": shape.d_head,
        "schedule.peak-learning-rate": learning_rate(size),
        "schedule.warmup-tokens": count // 20,
        "schedule.decay-tokens": count,
        "train.tokens": count,
    }
