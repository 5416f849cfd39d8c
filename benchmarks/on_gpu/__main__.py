"""What only a GPU can say: bits, start, speed, kernels and losses, in pieces of minutes.

    python benchmarks/on_gpu bits start [--out on_gpu.jsonl] [--commit COMMIT]
    python benchmarks/on_gpu train --only 125m 1b3 --pairs 5 --python-torch PATH
    python benchmarks/on_gpu table

bits       three runs of the demo, one of them killed and resumed, and a replay: in bfloat16, in
           float8, and with LoRA
start      the demo's first step, with an empty and with a filled compilation cache
train      training steps in bfloat16 against PyTorch (pytorch_gpt.py); two minutes for 125M
float8     the same in float8 against bfloat16
decode     greedy decoding of one and of eight rows in three formats against transformers
kernels    a profile of a training step, with the estimated time of each kind of kernel
flags      a training step and decoding of 125M under flags of XLA that others use
attention  forward and backward passes of attention alone: cuDNN's and JAX's own kernels
curves     validation losses of the demo in float32, bfloat16 and float8
ladder     eight sizes on Python packages' source, and their law (experiments/ladder.py)
table      the results as Markdown; runs nothing

Each result is appended to a file as one line of JSON, with the card, the versions, the commit and
the command. PyTorch and transformers are measured by --python-torch, if given. --toy uses models of
a few thousand parameters and works on a CPU, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent.parent))

import runs  # noqa: E402
import speed  # noqa: E402
import table  # noqa: E402
from record import Results  # noqa: E402

PIECES = {
    "bits": runs.bits, "start": runs.start, "train": speed.train,
    "float8": speed.float8, "decode": speed.decode,
    "kernels": speed.kernels, "flags": speed.flags, "attention": speed.attention,
    "curves": runs.curves, "ladder": runs.ladder,
}  # fmt: skip


def main() -> None:
    options = parse()
    if "table" in options.pieces:
        print(table.markdown(Results(options).read()))
        return
    for name in options.pieces:
        PIECES[name](options, Results(options, name))


def parse() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="on_gpu", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pieces", nargs="+", choices=[*PIECES, "table"])
    parser.add_argument("--only", nargs="+", default=list(speed.WINDOWS), choices=speed.WINDOWS,
                        help="sizes, for train, float8, decode and kernels")  # fmt: skip
    parser.add_argument("--decode", nargs="+", default=["decode", "decode8"],
                        choices=["decode", "decode8"], help="one row, or eight")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=5, help="measurements per side (5)")
    parser.add_argument("--python-torch", help="interpreter with torch and transformers")
    parser.add_argument("--out", type=Path, default=Path("on_gpu.jsonl"))
    parser.add_argument("--commit", help="if this folder is not a git repository")
    parser.add_argument("--toy", action="store_true", help="tiny models, to test the script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
