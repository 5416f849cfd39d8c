"""What the commands print of a model: its text, and how a training run went."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpt3jax.config import ConfigError, Experiment, Mesh, Weights
from gpt3jax.generate import Generator
from gpt3jax.model import table as model_table
from gpt3jax.model.decode import Sampling
from gpt3jax.run import Changes, Run
from gpt3jax.saved import load_model
from gpt3jax.sharding import hosts
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import counted
from gpt3jax.train.checkpoint import Position
from gpt3jax.train.display import held_out_losses
from gpt3jax.train.session import Outcome, train


def load_generator(path: Path, step: int | None = None, weights: Weights = "full") -> Generator:
    """A run's model at a checkpoint (the newest if `step` is None), on one device.

    Raises: as `load_model`.
    """
    found = load_model(path, step, make_mesh(Mesh(data=1), jax.devices()[:1]))
    return Generator(found.params, found.model, found.tokenizer, weights)


def write(
    path: Path,
    prompt: str,
    *,
    new_tokens: int,
    samples: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop: tuple[str, ...],
    seed: int,
    beams: int,
    weights: Weights,
    step: int | None,
    as_json: bool,
) -> None:
    """Print continuations of a prompt; a single one appears as it is written."""
    if new_tokens < 1 or samples < 1 or beams < 0:
        raise ConfigError("--new-tokens and --samples are at least 1, --beams 0. Raise them")
    if 0 < beams < samples:
        raise ConfigError(
            f"--samples is {samples}: {beams} beams find at most as many. Raise --beams"
        )
    sampling = Sampling(temperature, top_k, top_p)
    generator = load_generator(path, step, weights)
    drawing = {"new_tokens": new_tokens, "sampling": sampling, "seed": seed, "stop": stop}
    if samples == 1 and not beams and not as_json:
        sys.stdout.write(prompt)
        for piece in generator.text(prompt, **drawing):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return
    if beams:
        found = generator.beam_search(
            generator.tokenizer.encode(prompt), new_tokens=new_tokens, width=beams
        )
        texts = [generator.decode_until(each.tokens, stop) for each in found[:samples]]
    else:
        texts = generator.samples(prompt, samples, **drawing)
    if as_json:
        print(json.dumps({"prompt": prompt, "texts": texts, "seed": seed}, ensure_ascii=False))
        return
    for number, text in enumerate(texts, 1):
        print(f"--- {number}\n{prompt}{text}")


def train_and_tell(
    experiment: Experiment, path: Path, stuck_after: float, changes: Changes, began: float
) -> int:
    """Train, and print how it ended; returns the exit code."""
    try:
        outcome = train(experiment, path, stuck_after=stuck_after, changes=changes, began=began)
    except Exception as error:
        hosts.end_together(error)
        raise
    if hosts.is_first():
        print_outcome(path, experiment, outcome)
    return 128 + outcome.signal if outcome.signal else 0


def print_outcome(path: Path, experiment: Experiment, outcome: Outcome) -> None:
    """How training ended: before and after side by side, the figures, and what to type next."""
    console = Console(highlight=False, markup=False)
    run = Run(path)
    step = outcome.position.step
    if outcome.signal:
        console.print(f"stopped at step {step:,} and saved; the same command goes on from there")
        return
    if outcome.steps_taken == 0:
        more = _limit(outcome.position, experiment)
        console.print(f"{path} is done: {step:,} steps. To go on, raise {more}", soft_wrap=True)
    if _sample(run, 0).exists() and _sample(run, step).exists():
        side_by_side = Table.grid(expand=True)
        side_by_side.add_column(ratio=1)
        side_by_side.add_column(ratio=1)
        side_by_side.add_row(_panel(run, 0), _panel(run, step))
        console.print(side_by_side)
    measured = [r for r in run.metrics() if "val_loss" in r and r["step"] <= step]
    figures = measured[-1] if measured else {}
    size = model_table.count(experiment.model)
    console.print(f"{path}: {size:,} parameters, {figures.get('tokens', 0):,} tokens", markup=False)
    for line in held_out_losses(figures):
        console.print(line)
    of_base = [r["base_val_loss"] for r in measured if r.get("base_val_loss") is not None]
    if of_base:
        console.print(f"the base's validation was {of_base[0]:.3f} nats/token before")
    first = measured[0]["val_loss"] if measured and measured[0]["step"] == 0 else None
    if first is not None and (figures["val_loss"] is None or figures["val_loss"] > first):
        console.print(
            f"the model got worse: validation was {first:.3f} nats/token before the first step. "
            "Training diverged, or overfits: in a new --run, lower --schedule.peak-learning-rate "
            f"({experiment.schedule.peak_learning_rate:g}) or stop sooner"
        )
    console.print("To go on:")
    for command in _next_commands(path, experiment, step):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _limit(at: Position, experiment: Experiment) -> str:
    """The fields that ended a run."""
    train, tokens = experiment.train, at.sequences * experiment.model.context
    reached = ["--train.steps"] if train.steps is not None and at.step >= train.steps else []
    reached += ["--train.tokens"] if tokens >= train.tokens else []
    return " and ".join(reached) or "--train.patience"


def _next_commands(path: Path, experiment: Experiment, step: int) -> list[str]:
    """What to type after training: write, look, and the next size up."""
    ours, run, prompt = _own_command(), shlex.quote(str(path)), experiment.evaluate.prompt
    commands = [
        f"{ours} generate {run} --prompt {shlex.quote(prompt)}"
        if prompt and prompt.isprintable() and prompt[0] != "-"
        else f"{ours} generate {run}",
        f"{ours} report {run}",
        f"{ours} data show {run} --batch {max(0, step - 1)}",
    ]
    file, model = Path("experiments") / f"{experiment.name}.py", experiment.model
    if file.exists() and not experiment.init_from:
        wider = f"--model.d-model {2 * model.d_model} --model.n-heads {2 * model.n_heads}"
        commands.append(f"{ours} train {file} --run {shlex.quote(f'{path}-wide')} {wider}")
    return commands


def _own_command() -> str:
    """What starts this program in the shell that started it, whatever its PATH."""
    script = Path(sys.executable).with_name("gpt3jax")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m gpt3jax"
    if (found := shutil.which("gpt3jax")) and os.path.samefile(found, script):
        return "gpt3jax"
    is_here = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if is_here else script))


def _sample(run: Run, step: int) -> Path:
    return run.samples / f"{step}.txt"


def _panel(run: Run, step: int) -> Any:
    title = "untrained" if step == 0 else f"after {counted(step, 'step')}"
    text = _sample(run, step).read_text(encoding="utf-8")
    return Panel(Text(text.replace("\0", " ")), title=title)
