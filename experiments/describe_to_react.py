"""A description goes in, React code comes out: the article's example, small and for real.

    description: a red button that says "Send"
    code: <button style={{background: 'red'}} onClick={press}>Send</button>

Data       pairs in 71 dialects, one to a document, and a twelfth of the Python library's files:
           gpt3jax data prepare --corpus generated:experiments/describe_to_react.py
             --out data/describe-to-react --context 320 --vocabulary 1024
Command    gpt3jax train experiments/describe_to_react.py --run runs/describe_to_react
           gpt3jax evaluate runs/describe_to_react --tasks experiments/describe_to_react.py
             --shots 0 1 few
Page       python experiments/describe_to_react.py RESULTS.json [RESULTS.json of one tuned from it]
Cost       4M tokens; 16 minutes at 4,530 tokens/s on 2 CPU cores that others used, too
Loss       0.53 nats/token, 0.20 bits/byte on documents held out; 965,376 parameters

What is asked for is held out thrice: its labels, a pair of colour and kind, and the dialect,
which no document has. A description does not say which dialect is meant; a primer shows it.
Per cent of the task's 200 examples, greedy (one standard error is up to 3.5):

               exact match   parses, renders   as described, in whatever dialect
    zero-shot          0.0              97.0                                88.0
    one-shot          59.0              97.5                                88.0
    few-shot (4)      67.5              95.0                                80.5
    fine-tuned        87.0              97.5                                87.0    zero-shot

Fine-tuned: 93 steps of 32 of `pairs()`, Adam at 1e-3 to 0, loss on completions alone. On 200 things
that are not held out the base draws 97.0, 99.5 and 99.5 as described, exactly 1.5, 60.0 and 70.5:
what is lost above that is colours on kinds, and labels, that never came together before.
(Xeon, Python 3.11.7, jax 0.10.2, sentencepiece 0.2.3, 2026-11-23; by a script before `evaluate`.)

Of the 39 few-shot answers that draw something else, most have a word in a label that is not
there; it is one of the primer's no more often (6 of 24 words) than by chance.

Before, with 52 words, no quotes around labels in descriptions, a quarter of the library and a
context of 256, colours and nesting came out right after as many tokens, and no label did (0 of
40 as described). Quotes make a word the same token in description and code; which of the
changes it took was not tried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train
from gpt3jax.data.corpora.documents import Document, hash_key
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.evals import react
from gpt3jax.evals.react_page import Answer, Asked, page
from gpt3jax.evals.task import Task

TOKENS = 4_000_000
FEW = 4


def documents() -> Iterator[str]:
    """The training text: pairs in many dialects, and a twelfth of the Python library's files."""
    yield from react.documents(20_000)
    library = open_corpus("python-library")
    for part in library.parts:
        if hash_key(part.key) % 12 == 0:
            read = library.read(part)
            yield from (each.text for each in read if isinstance(each, Document))


def pairs() -> Iterator[dict[str, str]]:
    """To fine-tune on: prompt and completion, all in the dialect that is asked for."""
    return react.pairs(2_000)


def experiment() -> Experiment:
    return Experiment(
        name="describe_to_react",
        model=Model(
            n_layers=4,
            d_model=128,
            n_heads=4,
            d_head=32,
            vocabulary=1024,
            context=320,
            dense_every=1,
            scan_layers=False,
        ),
        data=Data(sources=(Source("describe-to-react", "data/describe-to-react"),)),
        schedule=Schedule(peak_learning_rate=4e-3, warmup_tokens=TOKENS // 20, decay_tokens=TOKENS),
        train=Train(batch_tokens=8 * 320, tokens=TOKENS, log_every=50, save_every=400, keep=2),
        evaluate=Evaluate(
            every=400,
            windows=64,
            prompt='\ndescription: a red button that says "Send"\ncode:',
            sample_tokens=64,
        ),
    )


def task() -> Task:
    return react.task(few=FEW)


def answers_in(results: Path, count: int) -> list[list[Answer]]:
    """What an evaluation kept of each of the task's first examples, once for each setting of it."""
    found = json.loads(results.read_text())
    return [
        [
            Answer(
                f"{found['experiment']}, {setting['shots']}-shot",
                record["prompts"][0].removesuffix(example.contexts[0]),
                record["answer"],
            )
            for example, record in zip(task().examples[:count], setting["examples"], strict=False)
        ]
        for setting in found["settings"]
        if setting["task"] == task().name
    ]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Show what models made of descriptions.")
    parser.add_argument("results", type=Path, nargs="+", help="results.json, of gpt3jax evaluate")
    parser.add_argument("--count", type=int, default=12, help="of the task's 200 examples")
    parser.add_argument("--out", type=Path, help="beside the first results if not given")
    words = parser.parse_args()
    settings = [each for file in words.results for each in answers_in(file, words.count)]
    asked = [
        Asked(example.contexts[0].splitlines()[1], example.completions[0], answers)
        for example, answers in zip(task().examples, zip(*settings, strict=True), strict=False)
    ]
    out = words.out or words.results[0].with_name("describe_to_react.html")
    out.write_text(page("A description goes in, React code comes out", asked))
    print(f"page: {out}")


if __name__ == "__main__":
    main()
