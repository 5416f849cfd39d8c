"""GPT-3's eight sizes: Table 2.1 of Brown et al. 2020, in the paper's order.

Each row has its own short file. The printed shapes of two rows do not match their
parameter counts: XL (24 heads x 128 = 3072, width 2048) and 13B (width 5140, 40
heads x 128 = 5120). The shapes here are the only ones that round to Table D.1's
1,320M and 12,850M; the printed ones run as follows:

    gpt3jax train experiments/gpt3_1b3.py --model.n-heads 24 --model.free-head-width True
    gpt3jax train experiments/gpt3_13b.py --model.d-model 5140 --model.free-head-width True

Choices that the paper leaves open: the band of the banded layers (256), and that
odd layers are banded (as in GPT-Neo); the tokens over which the batch size ramps
up (4, 6 or 12 billion, by batch size); the exact batch of 175B (1,536 windows,
3.15M tokens, divisible by meshes of 512 rows, and the same as in MLPerf's 175B).
Meshes are chosen when training starts; `gpt3jax plan` shows them with their costs.
"""

from dataclasses import dataclass

from gpt3jax.config import Data, Evaluate, Experiment, Mesh, Model, Remat, Schedule, Source, Train


@dataclass(frozen=True)
class Row:
    """One line of Table 2.1."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    batch_sequences: int
    """Windows of 2048 tokens: 0.5M, 1M, 2M and 3.2M tokens."""
    learning_rate: float
    ramp_tokens: int
    parameters: int
    """The exact count of this shape."""


ROWS = {
    "125m": Row(12, 768, 12, 64, 256, 6.0e-4, 4_000_000_000, 125_226_240),
    "350m": Row(24, 1024, 16, 64, 256, 3.0e-4, 4_000_000_000, 355_871_744),
    "760m": Row(24, 1536, 16, 96, 256, 2.5e-4, 4_000_000_000, 760_300_032),
    "1b3": Row(24, 2048, 16, 128, 512, 2.0e-4, 6_000_000_000, 1_315_723_264),
    "2b7": Row(32, 2560, 32, 80, 512, 1.6e-4, 6_000_000_000, 2_651_553_280),
    "6b7": Row(32, 4096, 32, 128, 1024, 1.2e-4, 12_000_000_000, 6_658_404_352),
    "13b": Row(40, 5120, 40, 128, 1024, 1.0e-4, 12_000_000_000, 12_853_386_240),
    "175b": Row(96, 12288, 96, 128, 1536, 0.6e-4, 12_000_000_000, 174_604_259_328),
}

MIXTURE = Data(
    sources=(
        # Table 2.2. The paper's weights add up to 1.01; they are normalised.
        Source("common_crawl", "data/common_crawl", 0.60),
        Source("webtext2", "data/webtext2", 0.22),
        Source("books1", "data/books1", 0.08),
        Source("books2", "data/books2", 0.08),
        Source("wikipedia", "data/wikipedia", 0.03),
    )
)


def gpt3(size: str, *, microbatch: int, remat: Remat) -> Experiment:
    """A row of the table with the paper's training: 300B tokens and Appendix B."""
    row = ROWS[size]
    return Experiment(
        name=f"gpt3_{size}",
        model=Model(row.n_layers, row.d_model, row.n_heads, row.d_head, remat=remat),
        data=MIXTURE,
        schedule=Schedule(peak_learning_rate=row.learning_rate),
        train=Train(
            batch_tokens=row.batch_sequences * 2048,
            ramp_tokens=row.ramp_tokens,
            microbatch=microbatch,
        ),
        mesh=Mesh("auto", "auto", "auto"),
        evaluate=Evaluate(every=1000, windows=1024),
    )
