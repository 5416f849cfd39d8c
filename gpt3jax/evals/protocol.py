"""The paper's zero-, one- and few-shot evaluation (section 2.4).

Parameters are not updated: the model learns in context only. The results record
every prompt and every score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpt3jax.errors import ConfigError
from gpt3jax.evals.prompts import PromptedExample, build_prompts
from gpt3jax.evals.scoring import Report, Scored, Scorer
from gpt3jax.evals.task import Task, exact_match, f1
from gpt3jax.style import pluralize

METRICS = {"exact match": exact_match, "F1": f1}


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation; recorded with the results."""

    shots: tuple[int | Literal["few"], ...] = (0, 1, "few")
    """Demonstrations per question; few is the task's own K."""
    draws: int = 1
    """Number of samples of demonstrations, for a standard deviation over samples."""
    seed: int = 0
    """Of the samples of demonstrations."""
    shared: bool = False
    """Use the same demonstrations for all questions of a group: faster, but noisier."""
    beams: int = 4
    """Of the beam search (the paper: 4); 1 is greedy; 0 generates nothing, and an answer
    counts as right if each of its tokens is the likeliest."""
    alpha: float = 0.6
    """Of the length penalty (the paper: 0.6)."""

    def __post_init__(self) -> None:
        if not self.shots or any(each != "few" and each < 0 for each in self.shots):
            raise ConfigError("--shots counts demonstrations: 0, 1, ... or few. Change it")
        if self.draws < 1 or self.beams < 0 or not 0 <= self.alpha <= 10:
            raise ConfigError(
                f"--draws is {self.draws}, --beams {self.beams}, the length penalty {self.alpha}: "
                "from 1, from 0, and from 0 to 10. Change them"
            )


@dataclass(frozen=True)
class Setting:
    """A task with a number of demonstrations, and a sample of them."""

    task: Task
    shots: int
    draw: int
    longest: int
    """Tokens of the longest accepted answer."""

    def __str__(self) -> str:
        return f"{self.task.name}, {pluralize(self.shots, 'shot')}"


def settings_of(scorer: Scorer, tasks: Sequence[Task], protocol: Protocol) -> list[Setting]:
    """All combinations of tasks, numbers of shots and draws.

    Raises:
      ConfigError: an answer leaves no room for a prompt.
    """
    settings, context = [], scorer.model.context
    for task in tasks:
        texts = {text for each in task.examples for text in each.completions}
        longest = max(len(scorer.tokenizer.encode(text)) for text in texts)
        if longest + 1 >= context:
            raise ConfigError(
                f"task {task.name!r} has answers of {longest} tokens, but the model's context is "
                f"{context}: no room is left for a question. Use a model with more context"
            )
        for k in dict.fromkeys(task.few if each == "few" else each for each in protocol.shots):
            draws = range(protocol.draws if k else 1)  # Zero-shot samples nothing.
            settings += [Setting(task, k, draw, longest) for draw in draws]
    return settings


def evaluate(scorer: Scorer, tasks: Sequence[Task], protocol: Protocol) -> Iterator[dict[str, Any]]:
    """The result of `evaluate_setting` for each of `settings_of`."""
    for setting in settings_of(scorer, tasks, protocol):
        yield evaluate_setting(scorer, setting, protocol)


def evaluate_setting(
    scorer: Scorer, setting: Setting, protocol: Protocol, report: Report = lambda _: None
) -> dict[str, Any]:
    """Evaluate the model on all questions of a setting.

    Returns:
      A JSON object: the setting, `score` (mean over the examples, 0 to 1), and
      `examples`, one record each (`record_of`).
    """
    task, k, draw = setting.task, setting.shots, setting.draw
    is_generated = task.metric in METRICS and protocol.beams > 0
    new_tokens = setting.longest + 1 if is_generated else 0
    how = {"draw": draw, "seed": protocol.seed, "shared": protocol.shared}
    prompted = build_prompts(
        task, k, scorer.tokenizer, scorer.model.context, **how, new_tokens=new_tokens
    )
    answers: list[str | None] = [None] * len(prompted)
    if is_generated:
        generated = scorer.answer(
            [each.prompts[0] for each in prompted],
            new_tokens=new_tokens,
            stop=(task.stop,),
            width=protocol.beams,
            alpha=protocol.alpha,
            candidates=[each.completions for each in prompted],
            report=report,
        )
        by_example = [each.candidates for each in generated]
        texts = (scorer.tokenizer.decode(each.tokens) for each in generated)
        answers = [text.split(task.stop)[0] for text in texts]
    else:
        pairs = [pair for each in prompted for pair in each.pairs]
        scored = iter(scorer.score(pairs, report))
        by_example = [[next(scored) for _ in each.pairs] for each in prompted]
    unconditional = _unconditional(scorer, task, prompted)
    examples = [
        record_of(task, each, scores, unconditional, answer, scorer)
        for each, scores, answer in zip(prompted, by_example, answers, strict=True)
    ]
    record = {
        "task": task.name, "metric": task.metric if is_generated or task.metric == "choice"
        else "greedy match", "shots": k, "draw": draw,
        "score": sum(each["score"] for each in examples) / len(examples),
        "chance": chance(task), "examples": examples,
        **({"normalise": task.normalise} if task.metric == "choice" else {}),
        **({"paper": [list(row) for row in task.paper]} if task.paper else {}),
        "few": task.few,
    }  # fmt: skip
    check(record, task)
    return record


def record_of(
    task: Task,
    prompted: PromptedExample,
    scores: Sequence[Scored],
    unconditional: dict[tuple[int, ...], float],
    answer: str | None,
    scorer: Scorer,
) -> dict[str, Any]:
    """The JSON record of one question: its prompts, and the scores of each candidate.

    `score` is 1 for a right choice or answer, or the F1 score; `margin` is the score
    of the truth less that of the best other candidate (nats, as normalised).
    """
    example, decode = prompted.example, scorer.tokenizer.decode
    candidates = []
    for (_, completion), (_, text), each in zip(
        prompted.pairs, example.candidates, scores, strict=True
    ):
        total = sum(each.log_probabilities)
        by = {"none": total, "token": total / len(completion), "character": total / len(text)}
        if completion in unconditional:
            by["answer context"] = total - unconditional[completion]
        candidates.append(
            {
                "text": text,
                "tokens": list(completion),
                "log_probabilities": list(each.log_probabilities),
                "is_likeliest": all(each.is_likeliest),
                "scores": by,
            }
        )
    record = {
        "prompts": [decode(prompt) for prompt in prompted.prompts],
        "demonstrations": len(prompted.demonstrations),
        "dropped": prompted.dropped,
        "cut": prompted.cut,
        "candidates": candidates,
        "truth": example.truth,
    }
    margin = max(sum(each.log_probabilities) for each in scores)
    if task.metric == "choice":
        by = [each["scores"][task.normalise] for each in candidates]
        choice = max(range(len(by)), key=by.__getitem__)
        others = [score for number, score in enumerate(by) if number != example.truth]
        margin = by[example.truth] - max(others, default=by[example.truth])
        outcome = {"choice": choice, "score": float(choice == example.truth)}
    elif answer is None:
        outcome = {"score": float(any(each["is_likeliest"] for each in candidates))}
    else:
        outcome = {"answer": answer, "score": METRICS[task.metric](answer, example.completions)}
    return record | outcome | {"margin": margin}


def check(setting: dict[str, Any], task: Task) -> bool:
    """Apply the task's check to all answers in place; return whether a record changed."""
    before = [record.get("checks") for record in setting["examples"]]
    for example, record in zip(task.examples, setting["examples"], strict=True):
        if task.check and "answer" in record:
            expected = example.candidates[example.truth][1]
            checks = task.check(record["answer"].strip(), expected.strip())
            record["checks"] = {name: bool(ok) for name, ok in checks.items()}
    return before != [record.get("checks") for record in setting["examples"]]


def chance(task: Task) -> float | None:
    """The expected score of guessing; None for generated answers unless the task defines it."""
    if task.chance is not None or task.metric != "choice":
        return task.chance
    return sum(1 / len(each.candidates) for each in task.examples) / len(task.examples)


def _unconditional(
    scorer: Scorer, task: Task, prompted: Sequence[PromptedExample]
) -> dict[tuple[int, ...], float]:
    """Log-likelihood of each completion after the answer context, if the normalisation needs it."""
    if task.metric != "choice" or task.normalise != "answer context":
        return {}
    prompt = tuple(scorer.tokenizer.encode(task.answer_context)) or (scorer.tokenizer.end_of_text,)
    texts = list(dict.fromkeys(text for each in prompted for text in each.completions))
    scored = scorer.score([(prompt, text) for text in texts])
    return {t: sum(each.log_probabilities) for t, each in zip(texts, scored, strict=True)}
