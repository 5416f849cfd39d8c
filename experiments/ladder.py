"""A ladder of eight sizes on the source of Python packages, and a larger model predicted from it.

Data       gpt3jax data prepare --corpus 'site-packages/**/*.py' --context 512 --vocabulary 8192 \\
               --out data/python-packages
Command    python benchmarks/on_gpu ladder
Source     Figure 3.1 of Brown et al. 2020 (loss by compute); one number of tokens for all sizes
Result     not run yet
Cost       estimated: eight minutes on one H200

All sizes see the same tokens in the same order, so that the law is one of parameters: it is
fitted to the first eight, and the last is predicted before it is trained. The learning rates are
those of scaling_law.py.
"""

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train

TOKENS = 32_000_000
CONTEXT, VOCABULARY, BATCH = 512, 8192, 64 * 512

SIZES = {
    # Parameters without embeddings, 12 L d^2: layers L and width d.
    983_040: (5, 128), 1_536_000: (5, 160), 2_654_208: (6, 192), 4_718_592: (6, 256),
    6_291_456: (8, 256), 9_830_400: (8, 320), 17_694_720: (10, 384), 31_457_280: (10, 512),
    84_934_656: (12, 768),
}  # fmt: skip
PREDICTED = max(SIZES)


def experiment() -> Experiment:
    return of_size(PREDICTED)


def of_size(size: int) -> Experiment:
    layers, width = SIZES[size]
    d_head = 64 if width % 64 == 0 else 32
    rate = 3.5e-3 * max(1.0, size / 1e6) ** -0.4
    return Experiment(
        name="ladder",
        model=Model(
            n_layers=layers, d_model=width, n_heads=width // d_head, d_head=d_head,
            context=CONTEXT, vocabulary=VOCABULARY,
        ),
        data=Data(sources=(Source("python-packages", "data/python-packages"),)),
        schedule=Schedule(rate, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=BATCH, tokens=TOKENS, log_every=20, save_every=1000, keep=1),
        evaluate=Evaluate(every=200, windows=512, sample_tokens=0),
    )  # fmt: skip


def overrides(size: int) -> list[str]:
    """The command line that makes `experiment` this size."""
    changed = of_size(size)
    model = {
        name: getattr(changed.model, name) for name in ("n_layers", "d_model", "n_heads", "d_head")
    }
    words = [f"--model.{name.replace('_', '-')}={value}" for name, value in model.items()]
    return [*words, f"--schedule.peak-learning-rate={changed.schedule.peak_learning_rate}"]
