"""In-context learning in miniature."""

from collections.abc import Iterator

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train
from gpt3jax.data.corpus import open_corpus
from gpt3jax.data.documents import Document
from gpt3jax.evals import patterns

TOKENS = 4_000_000
PATTERNS = 24_000


def documents() -> Iterator[str]:
    """The Python library, then patterns."""
    library = open_corpus("python-library")
    for part in library.parts:
        for document in library.read(part):
            if isinstance(document, Document):
                yield document.text
    yield from patterns.documents(seed=0, count=PATTERNS)


def experiment() -> Experiment:
    return Experiment(
        name="in_context",
        model=Model(
            n_layers=4, d_model=128, n_heads=4, d_head=32, vocabulary=2048, context=256, band=64,
            scan_layers=False,
        ),
        data=Data(sources=(Source("in_context", "data/in_context"),)),
        schedule=Schedule(peak_learning_rate=4e-3, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=16 * 256, tokens=TOKENS, log_every=20, save_every=200, keep=2),
        evaluate=Evaluate(every=200, windows=64, prompt=" \n", sample_tokens=64),
    )  # fmt: skip
