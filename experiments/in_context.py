"""In-context learning in miniature (Figure 1.2): more demonstrations, more right answers."""

from collections.abc import Iterator
from itertools import islice

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train
from gpt3jax.data.corpus import open_corpus
from gpt3jax.data.documents import Document
from gpt3jax.evals import patterns

TOKENS = 6_000_000
PATTERNS = 48_000


def documents() -> Iterator[str]:
    """Every third file of the Python library, then patterns."""
    library = open_corpus("python-library")
    for part in islice(library.parts, None, None, 3):
        for document in library.read(part):
            if isinstance(document, Document):
                yield document.text
    yield from patterns.documents(seed=0, count=PATTERNS)


def experiment() -> Experiment:
    return Experiment(
        name="in_context",
        model=Model(
            n_layers=5,
            d_model=64,
            n_heads=4,
            d_head=16,
            vocabulary=1024,
            context=192,
            band=2,
            init_std=0.1,
            scan_layers=False,
        ),
        data=Data(sources=(Source("in_context", "data/in_context"),)),
        schedule=Schedule(peak_learning_rate=6e-3, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=8 * 192, tokens=TOKENS, log_every=100, save_every=1000, keep=2),
        evaluate=Evaluate(every=1000, windows=64, prompt=" \n ba ko", sample_tokens=64),
    )
