"""Python's syntax: which of two continuations is right? Questions that the demo can answer.

Command    gpt3jax evaluate runs/tiny --tasks experiments/python_syntax.py --shots 0 1 few

A language model of a million parameters knows no facts and cannot add, but two minutes
on the source of Python's library teach it some grammar. Each question is a minimal pair,
as in BLiMP (Warstadt et al. 2020): the start of a line, and two continuations of which
one is a syntax error. Guessing is right half the time.

Accuracy of the demo's last checkpoint over all 400 questions in per cent (+- 4), and over the
52 to 78 questions of each phenomenon:

    demonstrations    all   blocks   brackets   clauses   colons   keywords   quotes
                 0   78.8      100         75        83       27        100       89
                 1   79.2      100         75        73       53        100       67
                 8   77.2      100         72        60       64        100       54

(2 Xeon cores, Linux, Python 3.11.7, jax 0.10.2, 2026-11-27; one seed.) It knows blocks and
keywords. Demonstrations raise colons and lower quotes and clauses: in all nothing is gained.
"""

import random

from gpt3jax.evals.task import Example, Task

PAIRS = {
    "brackets": [
        ("{n} = len({m}", ")\n", "]\n"),
        ("{n} = {m}[0", "]\n", ")\n"),
        ("self.{n} = [{m}, 1", "]\n", ")\n"),
        ("print({n}, {m}", ")\n", "}}\n"),
    ],
    "colons": [
        ("if {n} is not None", ":\n", ",\n"),
        ("def {n}(self, {m})", ":\n", ",\n"),
        ("while {n} < len({m})", ":\n", ")\n"),
        ("class {n}(object)", ":\n", ",\n"),
    ],
    "blocks": [
        ("def {n}({m}):", "\n    return", "\nreturn"),
        ("if {n} > {m}:", "\n    {n} = 0", "\n{n} = 0"),
        ("for {n} in {m}:", "\n    print", "\nprint"),
    ],
    "keywords": [
        ("for {n}", " in {m}:", " is {m}:"),
        ("if {n}", " not in {m}:", " not for {m}:"),
        ("from {n}", " import {m}\n", " return {m}\n"),
        ("try:\n    {m}()\nexcept ValueError", " as {n}:", " with {n}:"),
        ("with open({n})", " as {m}:", " from {m}:"),
    ],
    "quotes": [
        ("{n} = '{m}", "'\n", '"\n'),
        ('{n} = "{m}', '"\n', "'\n"),
    ],
    "clauses": [
        ("try:\n    {n}()\n", "except {m}:", "elif {m}:"),
        ("if {n}:\n    {m}()\n", "else:\n", "except:\n"),
        ("if {n}:\n    {m}()\n", "elif {m}:", "except {m}:"),
    ],
}
"""By phenomenon: the start of a line, the right continuation, the wrong one."""
NAMES = [
    *("args", "buffer", "code", "count", "data", "file", "index", "item", "key", "length"),
    *("line", "message", "name", "node", "path", "result", "size", "start", "text", "value"),
]


def task() -> Task:
    draw = random.Random(0)
    examples = set()
    while len(examples) < 400:
        phenomenon = draw.choice(sorted(PAIRS))
        start, *ends = draw.choice(PAIRS[phenomenon])
        n, m = draw.sample(NAMES, 2)
        truth = draw.randrange(2)
        right, wrong = (end.format(n=n, m=m) for end in ends)
        choices = (wrong, right) if truth else (right, wrong)
        examples.add(Example(("\n" + start.format(n=n, m=m),), choices, truth, phenomenon))
    return Task("python_syntax", tuple(draw.sample(sorted(examples, key=repr), 400)), "choice", 8)
