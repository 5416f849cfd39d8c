"""From a description to React code: the example of the article How GPT3 Works, in small.

    description: a red button that says "Send"
    code: <button style={{background: 'red'}} onClick={press}>Send</button>

Data       pairs in 71 dialects, one to a document, and a twelfth of the Python library's files:
           gpt3jax data prepare --corpus generated:experiments/describe_to_react.py
             --out data/describe-to-react --context 320 --vocabulary 1024
Command    gpt3jax train experiments/describe_to_react.py --run runs/describe_to_react
           gpt3jax evaluate runs/describe_to_react --tasks experiments/describe_to_react.py
             --shots 0 1 few
Page       python experiments/describe_to_react.py RESULTS.json [RESULTS.json of one tuned from it]
Cost       4M tokens; 16 minutes at 4,530 tokens/s on 2 shared CPU cores
Loss       0.53 nats/token, 0.20 bits/byte on held-out windows; 965,376 parameters

Three properties of the task's examples are held out of the training text: their labels, a pair of
colour and kind, and the dialect. A description does not state the dialect; a primer shows it.
Per cent of the task's 200 examples with greedy decoding (one standard error is up to 3.5):

               exact match   parses, renders   as described, in any dialect
    zero-shot          0.0              97.0                                88.0
    one-shot          59.0              97.5                                88.0
    few-shot (4)      67.5              95.0                                80.5
    fine-tuned        87.0              97.5                                87.0    zero-shot

Fine-tuned: 93 steps of 32 of `pairs()`, Adam from 1e-3 to 0, loss on completions only. On 200
widgets that are not held out, 97.0, 99.5 and 99.5 (zero-, one- and few-shot) of the base model's
answers are as described, and 1.5, 60.0 and 70.5 are exact: the difference from the table is due to
the unseen combinations of colour and kind, and of words in labels.
(Xeon, Python 3.11.7, jax 0.10.2, sentencepiece 0.2.3, 2026-11-23; measured by a script that
predates `evaluate`.)

Most of the 39 few-shot answers that are not as described have a wrong word in a label; it comes
from the primer no more often (6 of 24 words) than by chance.

An earlier version had 52 words, no quotes around labels in descriptions, a quarter of the library
and a context of 256. After as many tokens its colours and nesting were right, and all of its
labels wrong (0 of 40 as described). Quotes make a word the same token in description and code; the
changes were not tried one by one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from gpt3jax.config import Data, Evaluate, Experiment, Model, Schedule, Source, Train
from gpt3jax.data.corpora.documents import Document, hash_key
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.evals.task import Task

from react import widgets
from react.page import Answer, Question, render_page

TOKENS = 4_000_000
FEW = 4


def documents() -> Iterator[str]:
    """The training text: pairs in 71 dialects, and a twelfth of the Python library's files."""
    yield from widgets.documents(20_000)
    library = open_corpus("python-library")
    for part in library.parts:
        if hash_key(part.key) % 12 == 0:
            documents = library.read(part)
            yield from (each.text for each in documents if isinstance(each, Document))


def pairs() -> Iterator[dict[str, str]]:
    """Prompts and completions for fine-tuning, in the task's dialect."""
    return widgets.pairs(2_000)


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
    return widgets.task(few=FEW)


def answers_in(results: Path, count: int) -> list[list[Answer]]:
    """For each setting in a results file, the answers to the task's first `count` examples."""
    evaluation = json.loads(results.read_text())
    return [
        [
            Answer(
                f"{evaluation['experiment']}, {setting['shots']}-shot",
                record["prompts"][0].removesuffix(example.contexts[0]),
                record["answer"],
            )
            for example, record in zip(task().examples[:count], setting["examples"], strict=False)
        ]
        for setting in evaluation["settings"]
        if setting["task"] == task().name
    ]


def main() -> None:
    """Write an HTML page of the answers in one or several results files."""
    parser = argparse.ArgumentParser(description="Write an HTML page of models' answers.")
    parser.add_argument("results", type=Path, nargs="+", help="results.json of gpt3jax evaluate")
    parser.add_argument("--count", type=int, default=12, help="number of the task's 200 examples")
    parser.add_argument("--out", type=Path, help="default: beside the first results file")
    args = parser.parse_args()
    settings = [each for file in args.results for each in answers_in(file, args.count)]
    questions = [
        Question(example.contexts[0].splitlines()[1], example.completions[0], answers)
        for example, answers in zip(task().examples, zip(*settings, strict=True), strict=False)
    ]
    out = args.out or args.results[0].with_name("describe_to_react.html")
    out.write_text(render_page("A description goes in, React code comes out", questions))
    print(f"page: {out}")


if __name__ == "__main__":
    main()
