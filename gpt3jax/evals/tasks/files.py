"""Load tasks from files, and built-in tasks by name.

A `.jsonl` or `.jsonl.gz` file has an example per line, in one of three forms; the
first is that of the paper's released files:

    {"context": "\\n\\nQ: What is 98 plus 45?\\n\\nA:", "completion": " 143"}     or a list of
                                                                            accepted answers
    {"context": "...", "choices": [" yes", " no"], "truth": 0}          multiple choice
    {"contexts": ["..", ".."], "completion": " ...", "truth": 1}        partial evaluation

An optional `group` restricts demonstrations to examples of the same group. Other
properties of a task are set in a Python file, which is executed:

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
"""Default number of demonstrations for files (the paper's K for SuperGLUE)."""

GROUPS = {"arithmetic": ARITHMETIC, "scrambles": SCRAMBLES, "patterns": tuple(PATTERNS)}
"""Names of groups of tasks."""
BUILT_IN = tuple(name for names in GROUPS.values() for name in names)


@dataclasses.dataclass(frozen=True)
class _Generated:
    """A line of a task with generated answers."""

    context: str
    completion: str | tuple[str, ...]
    group: str = ""

    def example(self) -> Example:
        accepted = self.completion
        accepted = (accepted,) if isinstance(accepted, str) else accepted
        return Example((self.context,), accepted, group=self.group)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A line of a multiple-choice task."""

    context: str
    choices: tuple[str, ...]
    truth: Count
    group: str = ""

    def example(self) -> Example:
        return Example((self.context,), self.choices, self.truth, self.group)


@dataclasses.dataclass(frozen=True)
class _Partial:
    """A line of a task with partial evaluation."""

    contexts: tuple[str, ...]
    completion: str
    truth: Count
    group: str = ""

    def example(self) -> Example:
        return Example(self.contexts, (self.completion,), self.truth, self.group)


def read_jsonl(path: str | Path, **fields: Any) -> Task:
    """Read the task in a .jsonl or .jsonl.gz file.

    Args:
      path: the file; all its lines must have the same one of the forms above.
      fields: of the Task. By default, its name is that of the file, its metric `exact
        match` or `choice`, and `few` is 32.

    Raises:
      ConfigError: the file cannot be read, or a line is invalid; its number is given.
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
                raise ValueError("it has another form than the previous lines")
            examples.append(serde.build(form, row).example())
            _check_text(examples[-1])
        except (ValueError, ConfigError) as error:
            why = str(error).removesuffix(". Correct it")
            raise ConfigError(f"{path}:{number}: {why}. Correct the line") from error
    if not examples:
        raise ConfigError(f"{path} has no examples: no line has one. Add some")
    metric = "exact match" if forms == {_Generated} else "choice"
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Task(**{"name": name, "metric": metric, "few": FEW, **fields}, examples=tuple(examples))


def _form(row: Any) -> type:
    keys = row if isinstance(row, dict) else ()
    return _Partial if "contexts" in keys else _Choice if "choices" in keys else _Generated


def _check_text(example: Example) -> None:
    for text in (*example.contexts, *example.completions):
        text.encode()  # UnicodeEncodeError for a lone surrogate, which JSON can express.


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, decompressed up to the size limit."""
    try:
        raw = serde.read_bytes(path)
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                raw = file.read(serde.LARGEST + 1)
            if len(raw) > serde.LARGEST:
                raise ValueError(f"decompressed, it has over {serde.LARGEST} bytes")
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
    """Load tasks by name, in order and without duplicates.

    Args:
      names: built-in tasks; groups of them: `arithmetic`, `scrambles`, `patterns`;
        .jsonl and .jsonl.gz files; .py files with a function `task() -> Task`.
      words: returns the words to scramble, most frequent first; called if needed.
      count: maximum number of examples: the first ones of a file, a random sample of others.
      seed: of the built-in tasks and samples.

    Raises:
      ConfigError: a task does not exist, or cannot be read.
    """
    if count is not None and count < 1:
        raise ConfigError(f"{count} examples per task: at least 1 is needed. Raise it")
    unique_names = dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,)))
    word_list: list[str] | None = None
    tasks = []
    for name in unique_names:
        if name in SCRAMBLES and word_list is None:
            if words is None:
                raise ConfigError(
                    f"task {name} needs words to scramble: none are given. Give a list"
                )
            word_list = words()
        task = _load(name, word_list, seed)
        if count is not None and count < len(task.examples):
            rng = random.Random(f"{name}:{seed}:{count}") if name in BUILT_IN else None
            task = _subset(task, count, rng)
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
        task = call(name, "task")
        if not isinstance(task, Task):
            raise ConfigError(
                f"{name}: task() returned {type(task).__name__}, not a Task. Return one"
            )
        return task
    closest = difflib.get_close_matches(name, [*GROUPS, *BUILT_IN], 1, cutoff=0.0)[0]
    raise ConfigError(
        f"task {name[:80]!r} is not known: the nearest is {closest}. Name it, or a .jsonl or .py "
        "file"
    )


def _subset(task: Task, count: int, rng: random.Random | None) -> Task:
    """A task with a random sample of the examples, or the first; the others are demonstrations.

    If some group would have too few demonstrations, the subset demonstrates itself.
    """
    order = list(range(len(task.examples)))
    chosen = sorted(rng.sample(order, count)) if rng else order[:count]
    examples = tuple(task.examples[i] for i in chosen)
    if task.demonstrations:
        return dataclasses.replace(task, examples=examples)
    chosen_set = set(chosen)
    others = tuple(task.examples[i] for i in order if i not in chosen_set)
    pool_sizes = Counter(each.group for each in others)
    is_enough = all(pool_sizes[each.group] >= task.few for each in examples)
    return dataclasses.replace(task, examples=examples, demonstrations=others if is_enough else ())
