"""`gpt3jax train`: start a run, or resume it; and what is printed at its end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt3jax.commands.inputs import MOST_BATCHES, check_range
from gpt3jax.config import Experiment
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding.distributed import Hosts
from gpt3jax.style import pluralize

if TYPE_CHECKING:
    from gpt3jax.checkpoint.checkpointer import Position
    from gpt3jax.train.train import Outcome


def train(
    experiment: Experiment,
    run: Path | None = None,
    hosts: Hosts = Hosts(),  # noqa: B008 (frozen)
    stuck_after: float = 600.0,
    changes: Changes = Changes(),  # noqa: B008 (frozen)
) -> int:
    """Start a run, or resume the one that is there. Alone, or the same command on every host.

    Examples:
      gpt3jax train experiments/tiny.py
      gpt3jax train experiments/tiny.py --run runs/wide --model.d-model 384 --model.n-heads 12
      gpt3jax train experiments/tiny.py --coordinator 10.0.0.1:9911 --processes 2 --process 0
      gpt3jax train experiments/tiny.py --rewind-to 400 --skip 50
      gpt3jax train experiments/tiny.py --schedule.peak-learning-rate 1e-3 --allow-change schedule

    Args:
      experiment: The experiment; each field can be overridden.
      run: Folder of the run, seen by all hosts; runs/NAME if not given.
      hosts: How to find the other processes; a cluster is detected.
      stuck_after: Of several processes: seconds without progress after which one says where it
        is, and ends; 0: never.
      changes: To a run that is there; each is recorded in its ledger.
    """
    began = time.time()
    check_range(0, 10**9, stuck_after=stuck_after)
    check_range(0, MOST_BATCHES, skip=changes.skip, rewind_to=changes.rewind_to or 0)
    from gpt3jax.model.trainable import trained
    from gpt3jax.sharding.distributed import is_likely, join
    from gpt3jax.train.run_setup import check_base, check_writable, data_identity

    path = run or Path("runs") / experiment.name
    experiment = Run(path).located(experiment)
    if not is_likely(hosts):
        # What data and disk forbid is said before jax is imported.
        check_writable(path)
        trained(experiment)
        data_identity(experiment)
        if experiment.init_from and not Run(path).exists():
            check_base(experiment)
    from gpt3jax.runtime.memory import retain_freed_memory

    retain_freed_memory()
    join(hosts)
    return train_and_tell(experiment, path, stuck_after, changes, began)


def train_and_tell(
    experiment: Experiment, path: Path, stuck_after: float, changes: Changes, began: float
) -> int:
    """Train, and print how it ended; returns the exit code."""
    from gpt3jax.plan.choose import mesh_for
    from gpt3jax.sharding import processes
    from gpt3jax.train.train import train as run_train

    try:
        mesh, why = mesh_for(experiment)
        outcome = run_train(
            experiment, path, mesh=mesh, why=why, stuck_after=stuck_after, changes=changes,
            began=began,
        )  # fmt: skip
    except Exception as error:
        processes.end_together(error)
        raise
    if processes.is_first():
        print_outcome(path, experiment, outcome)
    return 128 + outcome.signal if outcome.signal else 0


def print_outcome(path: Path, experiment: Experiment, outcome: Outcome) -> None:
    """How training ended: before and after side by side, the figures, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    from gpt3jax.model.param_specs import count_params
    from gpt3jax.train.monitor.display import held_out_losses

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
    size = count_params(experiment.model)
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
    from rich.panel import Panel
    from rich.text import Text

    title = "untrained" if step == 0 else f"after {pluralize(step, 'step')}"
    text = _sample(run, step).read_text(encoding="utf-8")
    return Panel(Text(text.replace("\0", " ")), title=title)
