"""The demo: a small model of Python's library, trained on a laptop in minutes.

Data       the standard library of the running Python: gpt3jax data prepare
           --corpus python-library --out data/python-library
Command    make demo
Cost       about two and a half minutes on 2 CPU cores
Loss       2.05 bits/byte on all 140 held-out windows; 3.59 before training

The architecture and optimizer are the paper's, with shorter schedules. A width of
192 for the same time gave the same loss.
"""

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train

TOKENS = 1_700_000


def experiment() -> Experiment:
    return Experiment(
        name="tiny",
        model=Model(
            n_layers=4,
            d_model=128,
            n_heads=4,
            d_head=32,
            vocabulary=2048,
            context=256,
            band=64,
        ),
        data=Data(sources=(Source("python-library", "data/python-library"),)),
        schedule=Schedule(peak_learning_rate=4e-3, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=8 * 256, tokens=TOKENS, log_every=20, save_every=200, keep=5),
        evaluate=Evaluate(every=420, windows=0, prompt="class ", sample_tokens=128),
    )
