"""Commands about a trained model: what it writes, how good it is."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt3jax.commands.checks import check_range
from gpt3jax.config import ConfigError, Mesh, Weights

MOST_SAMPLES = 4096
"""Written together: more would not fit."""
LONGEST_PROMPT = 1 << 20
LONGEST_TOKEN = 1000


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
    weights: Weights = "full",
    step: int | None = None,
    json: bool = False,
) -> None:
    """Continue a prompt, token by token.

    Examples:
      gpt3jax generate runs/tiny --prompt 'def main('
      gpt3jax generate runs/tiny --prompt 'class ' --samples 4 --top-p 0.9 --seed 7
      gpt3jax generate runs/tiny --prompt 'import ' --beams 4 --new-tokens 20
      head -c 200 code.py | gpt3jax generate runs/tiny

    Args:
      run: The run to write with.
      prompt: Text to continue; empty starts a new document. -, or no prompt where standard input
        is not a terminal: standard input, as it is.
      prompt_file: A file with the text to continue.
      new_tokens: At most this many; fewer at the end of a document or a stop string.
      samples: How many continuations.
      temperature: Below 1 is bolder in what is likely; 0 always takes the likeliest token.
      top_k: Draw from the k likeliest tokens; 0 from all.
      top_p: Draw from the fewest tokens whose probability adds up to this.
      stop: End before any of these strings.
      seed: The same seed writes the same text.
      beams: Beam search of this width instead of drawing (the paper: 4, length penalty 0.6).
      weights: Keep matrices in fewer bytes, a half or a quarter of float32's, of a slightly
        different model (see `perplexity --weights`).
      step: The checkpoint; the newest if not given.
      json: One JSON object with the prompt and the texts.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, MOST_SAMPLES, samples=samples)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file are both given: which is it? Drop one")
    text = _prompt(prompt, prompt_file)
    from gpt3jax.write import write

    write(
        run, text, new_tokens=new_tokens, samples=samples, temperature=temperature,
        top_k=top_k, top_p=top_p, stop=stop, seed=seed, beams=beams, weights=weights, step=step,
        as_json=json,
    )  # fmt: skip


def _prompt(prompt: str | None, file: Path | None = None) -> str:
    """The prompt as given, of a file, or piped to the command; where there is none, empty."""
    is_piped = prompt is None and sys.stdin is not None and not os.isatty(0)
    if not file and not is_piped and prompt != "-":
        return prompt or ""
    what = f"--prompt-file {file}" if file else "the prompt on standard input"
    try:
        with open(file or 0, encoding="utf-8", closefd=bool(file)) as stream:
            text = stream.read(LONGEST_PROMPT + 1)  # A device has no end.
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}. Give a file of UTF-8 text") from error
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(
            f"{what} is too long: over {LONGEST_PROMPT:,} letters no model reads. Give its end"
        )
    return text


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
        What it has already is kept, and not computed again.
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


def inspect(
    run: Positional[Path],
    prompt: str | None = None,
    new_tokens: int = 12,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    layers: tuple[int, ...] = (),
    task: str = "substitution",
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    step: int | None = None,
    out: Path | None = None,
) -> None:
    """Make one page that shows how the model wrote each token, and what is inside it.

    Examples:
      gpt3jax inspect runs/tiny --prompt 'def main('
      gpt3jax inspect runs/in_context --prompt ' \\n ba ko' --task hidden_rule --out page.html
      gpt3jax inspect experiments/gpt3_175b.py

    Args:
      run: The run; or an experiment file, for the anatomy of a model without weights.
      prompt: Text to continue, as `generate` takes and continues it with the same settings; empty
        starts a new document.
      new_tokens: At most this many; fewer at the end of a document.
      temperature: Below 1 is bolder in what is likely; 0 always takes the likeliest token.
      top_k: Draw from the k likeliest tokens; 0 from all.
      top_p: Draw from the fewest tokens whose probability adds up to this.
      seed: The same seed writes the same text.
      layers: Whose attention and additions are shown; all if not given.
      task: What is asked with 0, 1, 4 and 16 demonstrations: a name or file, as `evaluate` takes.
      mesh: How the devices are used.
      step: The checkpoint; the newest if not given.
      out: The page; RUN/inspect.html if not given, or NAME.html of an experiment file.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, LONGEST_PROMPT, new_tokens=new_tokens)
    from gpt3jax.look import Writing, look, look_at_shape, write_page

    if run.suffix == ".py":
        from gpt3jax.experiments import load_experiment

        experiment = load_experiment(run)
        write_page(look_at_shape(experiment), out or Path(f"{experiment.name}.html"))
    else:
        from gpt3jax.model.decode import Sampling

        writing = Writing(_prompt(prompt), new_tokens, Sampling(temperature, top_k, top_p), seed)
        record = look(run, writing, layers=layers, task=task, mesh=mesh, step=step)
        write_page(record, out or run / "inspect.html")


def perplexity(
    run: Positional[Path],
    data: Path | None = None,
    windows: int = 0,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    weights: Weights = "full",
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
      weights: Of the model as `generate` writes with it.
      step: The checkpoint; the newest if not given.
      json: Print the figures as JSON.
    """
    check_range(0, 10**9, windows=windows)
    from gpt3jax.evaluate import measure_perplexity

    measure_perplexity(run, data, windows, mesh, weights, step, json)


def report(
    runs: Positional[tuple[Path, ...]],
    out: Path | None = None,
    scaling_law: bool = False,
    json: bool = False,
) -> None:
    """Draw and compare the curves of runs: one HTML page, and each figure as PNG.

    Examples:
      gpt3jax report runs/tiny
      gpt3jax report runs/a runs/b --out comparison
      gpt3jax report --scaling-law sweeps/scaling_law/trial-*

    Args:
      runs: One run or more.
      out: Folder to write. If not given: RUN/report; of several runs, RUN/report-OTHERS in the
        first; of laws, scaling-law beside it.
      scaling_law: Fit laws of scale to the runs instead, and predict the largest.
      json: Print the table as JSON.
    """
    if scaling_law:
        from gpt3jax.scaling_page import write_laws

        write_laws(runs, out, as_json=json)
        return
    from gpt3jax.report import write_report

    write_report(runs, out, as_json=json)


def serve(
    run: Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 16,
    queue: int = 256,
    max_tokens: int = 4096,
    token_file: Path | None = None,
    step: int | None = None,
) -> None:
    """Answer OpenAI's /v1/completions on this machine, with a page to type at.

    Examples:
      gpt3jax serve runs/tiny
      gpt3jax serve runs/tiny --port 9000 --token-file token --host 0.0.0.0

    Args:
      run: The run to write with.
      host: The address to listen on; what is not loopback lets others use the model.
      port: The port; 0 takes any that is free.
      rows: Texts that are written together, at most; a power of two.
      queue: Texts that wait for that, at most; further requests are answered with 429.
      max_tokens: Of one text, at most.
      token_file: A file with the bearer token that requests must carry.
      step: The checkpoint; the newest if not given.
    """
    check_range(0, 65_535, port=port)
    check_range(1, 1024, rows=rows)
    check_range(1, 10**6, queue=queue, max_tokens=max_tokens)
    if rows & (rows - 1):
        raise ConfigError(f"--rows is {rows}: steps are compiled for powers of two. Use one")
    token = None
    if token_file:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file cannot be read: {error}. Check it") from error
        if not token.isprintable() or not 0 < len(token) <= LONGEST_TOKEN:
            raise ConfigError(
                f"--token-file {token_file} holds no token: one line of up to {LONGEST_TOKEN} "
                "letters. Write one"
            )
    try:
        from gpt3jax.serve import server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs the package {error.name}. pip install 'gpt3jax[serve]'"
        ) from error
    from gpt3jax.serve.api import Served
    from gpt3jax.serve.batching import Owner
    from gpt3jax.write import load_generator

    bound = server.listen(host, port)
    server.warn_of_strangers(host, token)
    say = partial(print, file=sys.stderr, flush=True)
    say(f"reading {run}")
    generator = load_generator(run, step)
    name = run.resolve().name
    served = Served(name, generator.model, generator.tokenizer, max_tokens, queue)
    owner = Owner(generator, rows, queue)
    owner.start(say)
    bound.listen(server.BACKLOG)
    print(f"{name} is served on {server.address_of(bound)} (Ctrl-C ends it)", flush=True)
    server.make_server(served, owner, bound, token).run(sockets=[bound])
