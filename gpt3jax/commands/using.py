"""Commands about a trained model: what it writes, how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt3jax.commands.checks import check_range
from gpt3jax.config import ConfigError, Mesh

MOST_SAMPLES = 4096
"""Written together: more would not fit."""
LONGEST_PROMPT = 1 << 20


def generate(
    run: Positional[Path],
    prompt: str | None = None,
    prompt_file: Path | None = None,
    new_tokens: int = 200,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    beams: int = 0,
    step: int | None = None,
    json: bool = False,
) -> None:
    """Continue a prompt, token by token.

    Examples:
      gpt3jax generate runs/tiny --prompt 'def main('
      gpt3jax generate runs/tiny --prompt 'class ' --samples 4 --top-p 0.9 --seed 7
      gpt3jax generate runs/tiny --prompt 'import ' --beams 4 --new-tokens 20

    Args:
      run: The run to write with.
      prompt: Text to continue; empty starts a new document.
      prompt_file: A file with the text to continue.
      new_tokens: At most this many; fewer at the end of a document or a stop string.
      samples: How many continuations.
      temperature: Below 1 is bolder in what is likely; 0 always takes the likeliest token.
      top_k: Draw from the k likeliest tokens; 0 from all.
      top_p: Draw from the fewest tokens whose probability adds up to this.
      stop: End before any of these strings.
      seed: The same seed writes the same text.
      beams: Beam search of this width instead of drawing (the paper: 4, length penalty 0.6).
      step: The checkpoint; the newest if not given.
      json: One JSON object with the prompt and the texts.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, MOST_SAMPLES, samples=samples)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file are both given: which is it? Drop one")
    if prompt_file:
        try:
            with prompt_file.open(encoding="utf-8") as file:
                prompt = file.read(LONGEST_PROMPT + 1)  # A device has no end.
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt-file cannot be read: {error}. Check it") from error
        if len(prompt) > LONGEST_PROMPT:
            raise ConfigError(
                f"--prompt-file {prompt_file} is too long: over {LONGEST_PROMPT:,} letters no "
                "model reads. Give its end"
            )
    from gpt3jax.write import write

    write(
        run, prompt or "", new_tokens=new_tokens, samples=samples, temperature=temperature,
        top_k=top_k, top_p=top_p, stop=stop, seed=seed, beams=beams, step=step, as_json=json,
    )  # fmt: skip


def evaluate(
    runs: Positional[tuple[Path, ...]],
    tasks: tuple[str, ...],
    shots: tuple[int | Literal["few"], ...] = (0, 1, "few"),
    examples: int | None = None,
    draws: int = 1,
    seed: int = 0,
    shared: bool = False,
    beams: int = 4,
    words: Path | None = None,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    step: int | None = None,
    out: Path | None = None,
    plot: bool = False,
    json: bool = False,
) -> None:
    """Ask the models of runs tasks with no, one and few demonstrations; nothing is updated.

    Examples:
      gpt3jax evaluate runs/tiny --tasks arithmetic scrambles --shots 0 1 few --examples 200
      gpt3jax evaluate runs/in-context --tasks patterns --shots 0 1 2 4 8 16 --plot
      gpt3jax evaluate runs/base runs/tuned --tasks mine.jsonl mine.py --beams 1 --out results

    Args:
      runs: One run or more, for one table.
      tasks: Names (two_digit_addition, reversed_words, ...), groups of them (arithmetic,
        scrambles, patterns), .jsonl files, or .py files with a function task().
      shots: Demonstrations in front of each question; few: the task's own number.
      examples: Ask only so many of each task.
      draws: Draw the demonstrations anew so often, for an error bar over draws.
      seed: Of the drawings, and of generated tasks.
      shared: Draw once for all questions, and read it once: faster, noisier.
      beams: Of generated answers (the paper: 4); 1: greedy; 0: nothing is generated, and an
        answer is right when each of its tokens is the likeliest.
      words: A word list for the scrambles; the run's training data if not given.
      mesh: How the devices are used.
      step: The checkpoint; the newest if not given.
      out: Folder to write, or of several runs one for each; RUN/evaluations/STEP if not given.
      plot: Also draw the scores against the shots: scores.png.
      json: Print the scores as JSON.
    """
    check_range(1, 10**7, examples=1 if examples is None else examples, draws=draws)
    check_range(0, 2**32 - 1, seed=seed)
    check_range(0, 64, beams=beams)
    from gpt3jax.evals.evaluate import Protocol
    from gpt3jax.evaluate import evaluate_runs

    evaluate_runs(
        runs, tasks, Protocol(shots, draws, seed, shared, beams), examples=examples, words=words,
        mesh=mesh, step=step, out=out, draw_plot=plot, as_json=json,
    )  # fmt: skip


def perplexity(
    run: Positional[Path],
    data: Path | None = None,
    windows: int = 0,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    step: int | None = None,
    json: bool = False,
) -> None:
    """How well a run's model predicts held-out text: per token, byte, word, and place.

    Examples:
      gpt3jax perplexity runs/tiny
      gpt3jax perplexity runs/tiny --data data/books --windows 500 --json

    Args:
      run: The run.
      data: A folder that `data prepare` made with the run's tokenizer; the run's own if not given.
      windows: So many held-out windows; 0: all.
      mesh: How the devices are used.
      step: The checkpoint; the newest if not given.
      json: Print the figures as JSON.
    """
    check_range(0, 10**9, windows=windows)
    from gpt3jax.evaluate import measure_perplexity

    measure_perplexity(run, data, windows, mesh, step, json)


def report(runs: Positional[tuple[Path, ...]], out: Path | None = None, json: bool = False) -> None:
    """Draw and compare the curves of runs: one HTML page, and each figure as PNG.

    Examples:
      gpt3jax report runs/tiny
      gpt3jax report runs/a runs/b --out comparison

    Args:
      runs: One run or more.
      out: Folder to write; RUN/report of the first run if not given.
      json: Print the table as JSON.
    """
    from gpt3jax.report import write_report

    write_report(runs, out, as_json=json)
