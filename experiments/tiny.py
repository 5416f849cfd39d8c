"""The smallest run worth reading: Python's own source, on a laptop, in minutes.

Data       the standard library of the running Python (gpt3jax data prepare)
Command    make demo

The paper's architecture and optimizer, with its schedules shrunk to fit: batch
and learning rate as the small-model end of Table 2.1 suggests.
"""

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train

TOKENS = 2_000_000


def experiment() -> Experiment:
    return Experiment(
        name="tiny",
        model=Model(
            n_layers=4,
            d_model=192,
            n_heads=6,
            d_head=32,
            vocabulary=2048,
            context=256,
            band=64,
            scan_layers=False,
        ),
        data=Data(sources=(Source("python-library", "data/python-library"),)),
        schedule=Schedule(peak_learning_rate=3e-3, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=16 * 256, tokens=TOKENS, log_every=5, save_every=200, keep=2),
        evaluate=Evaluate(every=200, windows=64, prompt="def ", sample_tokens=96),
    )
