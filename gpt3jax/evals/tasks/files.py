"""Tasks from files, and by name.

A `.jsonl` or `.jsonl.gz` file has an example a line, in one of three forms; the
first is that of the paper's released files:

    {"context": "\\n\\nQ: What is 98 plus 45?\\n\\nA:", "completion": " 143"}     or a list, of
                                                                            answers accepted
    {"context": "...", "choices": [" yes", " no"], "truth": 0}          multiple choice
    {"contexts": ["..", ".."], "completion": " ...", "truth": 1}        partial evaluation

each with a `group`, if demonstrations are to come from the same one. What a task
is beyond its examples is said in a Python file, which is code and is run:

    \"\"\"Capitals: a country and its capital.\"\"\"
    from pathlib import Path

    from gpt3jax.evals.tasks.files import read_jsonl


    def task():
        return read_jsonl(
            Path(__file__).with_name("capitals.jsonl"),
            few=8, description="Name the capital.", source="by hand",
        )
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import gzip
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt3jax import serde
from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Example, Task
from gpt3jax.evals.tasks.arithmetic import ARITHMETIC, arithmetic
from gpt3jax.evals.tasks.patterns import PATTERNS
from gpt3jax.evals.tasks.words import SCRAMBLES, scramble
from gpt3jax.serde import Count
from gpt3jax.user_code import call

FEW = 32
"""Demonstrations of a task from a file that does not say (the paper's K for SuperGLUE)."""

GROUPS = {"arithmetic": ARITHMETIC, "scrambles": SCRAMBLES, "patterns": tuple(PATTERNS)}
"""Names that stand for several tasks."""
BUILT_IN = tuple(name for names in GROUPS.values() for name in names)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A line of a task whose answers are generated."""

    context: str
    completion: str | tuple[str, ...]
    group: str = ""

    def example(self) -> Example:
        one = isinstance(self.completion, str)
        accepted = (self.completion,) if one else self.completion
        return Example((self.context,), accepted, group=self.group)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A line of multiple choice."""

    context: str
    choices: tuple[str, ...]
    truth: Count
    group: str = ""

    def example(self) -> Example:
        return Example((self.context,), self.choices, self.truth, self.group)


@dataclasses.dataclass(frozen=True)
class _Partial:
    """A line of partial evaluation."""

    contexts: tuple[str, ...]
    completion: str
    truth: Count
    group: str = ""

    def example(self) -> Example:
        return Example(self.contexts, (self.completion,), self.truth, self.group)


def read_jsonl(path: str | Path, **fields: Any) -> Task:
    """The task in a .jsonl or .jsonl.gz file.

    Args:
      path: the file; the forms of its lines are those above, one form in a file.
      fields: of the Task. Left out, its name is that of the file, its metric `exact
        match` or `choice`, and `few` is 32.

    Raises:
      ConfigError: the file cannot be read, or a line is no example; it is named.
    """
    path, examples, forms = Path(path), [], set()
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = serde.parse(line.decode())
            form = _form(row)
            forms.add(form)
            if len(forms) > 1:
                raise ValueError("it has another form than the lines before")
            examples.append(serde.build(form, row).example())
            _check_text(examples[-1])
        except (ValueError, ConfigError) as error:
            why = str(error).removesuffix(". Mend it")
            raise ConfigError(f"{path}:{number}: {why}. Mend the line") from error
    if not examples:
        raise ConfigError(f"{path} has no examples: no line holds one. Add some")
    metric = "exact match" if forms == {_Asked} else "choice"
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    said = {"name": name, "metric": metric, "few": FEW, **fields}
    return Task(examples=tuple(examples), **said)


def _form(row: Any) -> type:
    keys = row if isinstance(row, dict) else ()
    return _Partial if "contexts" in keys else _Choice if "choices" in keys else _Asked


def _check_text(example: Example) -> None:
    for text in (*example.contexts, *example.completions):
        text.encode()  # A lone surrogate, which JSON can spell, is a UnicodeEncodeError.


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked; no more of it than a file may have."""
    try:
        raw = serde.read_bytes(path)
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                raw = file.read(serde.LARGEST + 1)
            if len(raw) > serde.LARGEST:
                raise ValueError(f"unpacked, it has over {serde.LARGEST} bytes")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"task file {path} cannot be read: {why}. Check it") from error
    return iter(raw.removeprefix(codecs.BOM_UTF8).splitlines())


def load_tasks(
    names: Sequence[str],
    words: Callable[[], list[str]] | None = None,
    count: int | None = None,
    seed: int = 0,
) -> list[Task]:
    """The tasks of these names, in their order, each once.

    Args:
      names: built-in tasks; `arithmetic`, `scrambles` or `patterns` for all of a
        kind; .jsonl and .jsonl.gz files; .py files with a function `task() -> Task`.
      words: gives the words to scramble, most frequent first; called if a scramble is asked for.
      count: examples of each, at most: of a file its first, of the others drawn by the seed.
      seed: of the built-in tasks.

    Raises:
      ConfigError: there is no such task, or it cannot be read.
    """
    if count is not None and count < 1:
        raise ConfigError(f"of a task {count} examples are asked: at least 1 is needed. Raise it")
    each = dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,)))
    listed: list[str] | None = None
    tasks = []
    for name in each:
        if name in SCRAMBLES and listed is None:
            if words is None:
                raise ConfigError(
                    f"task {name} needs words to scramble: none are given. Give a list"
                )
            listed = words()
        task = _load(name, listed, seed)
        if count is not None and count < len(task.examples):
            rng = random.Random(f"{name}:{seed}:{count}") if name in BUILT_IN else None
            task = _cut(task, count, rng)
        tasks.append(task)
    return tasks


def _load(name: str, words: list[str] | None, seed: int) -> Task:
    if name in ARITHMETIC:
        return arithmetic(name, seed)
    if name in PATTERNS:
        return PATTERNS[name](seed)
    if name in SCRAMBLES:
        return scramble(name, words or [], seed)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return read_jsonl(name)
    if name.endswith(".py"):
        made = call(name, "task")
        if not isinstance(made, Task):
            raise ConfigError(
                f"{name}: task() returned {type(made).__name__}, not a Task. Return one"
            )
        return made
    near = difflib.get_close_matches(name, [*GROUPS, *BUILT_IN], 1, cutoff=0.0)[0]
    raise ConfigError(
        f"task {name[:80]!r} is not known: the nearest is {near}. Name it, or a .jsonl or .py file"
    )


def _cut(task: Task, count: int, rng: random.Random | None) -> Task:
    """So many of the examples; drawn, or the first. The others are left to demonstrate.

    Where too few would be left in some group, those that are asked demonstrate each other.
    """
    order = list(range(len(task.examples)))
    chosen = sorted(rng.sample(order, count)) if rng else order[:count]
    asked = tuple(task.examples[i] for i in chosen)
    if task.demonstrations:
        return dataclasses.replace(task, examples=asked)
    taken = set(chosen)
    others = tuple(task.examples[i] for i in order if i not in taken)
    left = Counter(each.group for each in others)
    is_enough = all(left[each.group] >= task.few for each in asked)
    return dataclasses.replace(task, examples=asked, demonstrations=others if is_enough else ())
