"""`gpt3jax train`: start or resume a run, and print its summary."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt3jax.commands.inputs import MOST_BATCHES, check_range
from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding.distributed import Hosts
from gpt3jax.style import pluralize, wide_console
from gpt3jax.train.trackers import DEFAULT, check_trackers

if TYPE_CHECKING:
    from gpt3jax.checkpoint.checkpointer import Position
    from gpt3jax.train.monitor.profile import Trace
    from gpt3jax.train.train import Outcome


def train(
    experiment: Experiment,
    run: Path | None = None,
    hosts: Hosts = Hosts(),  # noqa: B008 (frozen)
    stuck_after: float = 600.0,
    profile: str | None = None,
    tracker: tuple[str, ...] = DEFAULT,
    changes: Changes = Changes(),  # noqa: B008 (frozen)
) -> int:
    """Start a run, or resume an existing one. For several hosts, run the same command on each.

    Examples:
      gpt3jax train experiments/tiny.py
      gpt3jax train experiments/tiny.py --run runs/wide --model.d-model 384 --model.n-heads 12
      gpt3jax train experiments/tiny.py --coordinator 10.0.0.1:9911 --processes 2 --process 0
      gpt3jax train experiments/tiny.py --rewind-to 400 --skip 50
      gpt3jax train experiments/tiny.py --run runs/traced --profile 20:24
      WANDB_MODE=offline gpt3jax train experiments/tiny.py --tracker tensorboard wandb
      gpt3jax train experiments/tiny.py --schedule.peak-learning-rate 1e-3 --allow-change schedule

    Args:
      experiment: The experiment file; each field can be overridden.
      run: The run directory, shared by all hosts; default runs/NAME.
      hosts: Coordinator and processes; detected on clusters.
      stuck_after: Timeout of the watchdog with several processes: after this many seconds without
        progress, a process writes its stacks and exits; 0: off.
      profile: STEP:STEP traces these steps and those between them to RUN/profile/, for XProf and
        Perfetto, and prints the kernels of the step with estimated and measured times.
      tracker: Where metrics, configuration and samples are sent: tensorboard, wandb, mlflow,
        trackio, or several.
      changes: Changes to an existing run, which are recorded in its event log.
    """
    began = time.time()
    check_range(0, 10**9, stuck_after=stuck_after)
    check_range(0, MOST_BATCHES, skip=changes.skip, rewind_to=changes.rewind_to or 0)
    steps = traced_steps(profile, experiment) if profile is not None else None
    from gpt3jax.model.trainable import trained
    from gpt3jax.sharding.distributed import is_likely, join
    from gpt3jax.train.run_setup import check_base, check_writable, data_identity

    check_trackers(tracker)
    path = run or Path("runs") / experiment.name
    experiment = Run(path).located(experiment)
    if not is_likely(hosts):
        # Report errors of data and disk before importing jax.
        check_writable(path)
        trained(experiment)
        data_identity(experiment)
        if experiment.init_from and not Run(path).exists():
            check_base(experiment)
    from gpt3jax.runtime.memory import allow_device_memory, retain_freed_memory

    retain_freed_memory()
    allow_device_memory()
    join(hosts)
    return train_and_report(experiment, path, stuck_after, changes, began, steps, tracker)


def traced_steps(text: str, experiment: Experiment) -> tuple[int, int]:
    """The first and the last step of `--profile`.

    Raises:
      ConfigError: the text is malformed, or the run does not reach the last step.
    """
    from gpt3jax.train.schedules import is_done, sequences_after

    parts = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    first, last = map(int, parts.groups()) if parts else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(
            f"--profile is {text!r}: expected the first and the last step, from 1 on. Write 20:24"
        )
    tokens = sequences_after(last - 1, experiment) * experiment.model.context
    if is_done(last - 1, tokens, experiment):
        raise ConfigError(
            f"--profile {text}: the run ends before step {last}. Name earlier steps, or train "
            "longer (--train.steps, --train.tokens)"
        )
    return first, last


def train_and_report(
    experiment: Experiment,
    path: Path,
    stuck_after: float,
    changes: Changes,
    began: float,
    steps: tuple[int, int] | None = None,
    trackers: Sequence[str] = DEFAULT,
) -> int:
    """Train, print a summary and return the exit code; `steps` are the first and last to trace."""
    from gpt3jax.plan.choose import mesh_for
    from gpt3jax.sharding import processes
    from gpt3jax.train.monitor.profile import StepTrace
    from gpt3jax.train.train import train as run_train

    try:
        mesh, why = mesh_for(experiment)
        outcome = run_train(
            experiment,
            path,
            mesh=mesh,
            why=why,
            stuck_after=stuck_after,
            changes=changes,
            began=began,
            trace=StepTrace(*steps, _kernels) if steps else None,
            trackers=trackers,
        )
    except Exception as error:
        processes.end_together(error)
        raise
    if processes.is_first():
        print_outcome(path, experiment, outcome)
    return 128 + outcome.signal if outcome.signal else 0


def _kernels(trace: Trace) -> str:
    """The kernels of traced steps as text, with estimated and measured times."""
    import jax

    from gpt3jax.plan.profile import sum_up
    from gpt3jax.plan.show import print_profile
    from gpt3jax.runtime.chips import chip_of

    console = wide_console(soft_wrap=True)
    with console.capture() as shown:
        print_profile(console, sum_up(trace, chip_of(jax.devices()[0].device_kind)))
    return shown.get().rstrip()


def print_outcome(path: Path, experiment: Experiment, outcome: Outcome) -> None:
    """Print samples from before and after training, the losses, and suggested next commands."""
    from rich.console import Console
    from rich.table import Table

    from gpt3jax.model.param_specs import count_params
    from gpt3jax.train.monitor.display import held_out_losses

    console = Console(highlight=False, markup=False)
    run = Run(path)
    step = outcome.position.step
    if outcome.signal:
        console.print(f"stopped at step {step:,} and saved; the same command resumes from there")
        return
    if outcome.steps_taken == 0:
        flags = _limit(outcome.position, experiment)
        console.print(
            f"{path} is finished: {step:,} steps. To train further, raise {flags}", soft_wrap=True
        )
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
    base_losses = [r["base_val_loss"] for r in measured if r.get("base_val_loss") is not None]
    if base_losses:
        console.print(f"the validation loss of the base was {base_losses[0]:.3f} nats/token")
    first = measured[0]["val_loss"] if measured and measured[0]["step"] == 0 else None
    if first is not None and (figures["val_loss"] is None or figures["val_loss"] > first):
        console.print(
            f"the model got worse: the validation loss was {first:.3f} nats/token before training. "
            "Training diverged or overfit: in a new --run, lower --schedule.peak-learning-rate "
            f"({experiment.schedule.peak_learning_rate:g}) or stop sooner"
        )
    console.print("Next:")
    for command in _next_commands(path, experiment, step):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _limit(at: Position, experiment: Experiment) -> str:
    """The flags whose limits ended a run."""
    train, tokens = experiment.train, at.sequences * experiment.model.context
    reached = ["--train.steps"] if train.steps is not None and at.step >= train.steps else []
    reached += ["--train.tokens"] if tokens >= train.tokens else []
    return " and ".join(reached) or "--train.patience"


def _next_commands(path: Path, experiment: Experiment, step: int) -> list[str]:
    """Commands to generate text, plot the run, show its data, and train a wider model."""
    program, run, prompt = _program(), shlex.quote(str(path)), experiment.evaluate.prompt
    has_prompt = prompt and prompt.isprintable() and prompt[0] != "-"
    commands = [
        f"{program} generate {run}" + (f" --prompt {shlex.quote(prompt)}" if has_prompt else ""),
        f"{program} report {run}",
        f"{program} data show {run} --batch {max(0, step - 1)}",
    ]
    file, model = Path("experiments") / f"{experiment.name}.py", experiment.model
    if file.exists() and not experiment.init_from:
        wider = f"--model.d-model {2 * model.d_model} --model.n-heads {2 * model.n_heads}"
        commands.append(f"{program} train {file} --run {shlex.quote(f'{path}-wide')} {wider}")
    return commands


def _program() -> str:
    """A shell command that starts this program, even if it is not on the PATH."""
    script = Path(sys.executable).with_name("gpt3jax")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m gpt3jax"
    if (on_path := shutil.which("gpt3jax")) and os.path.samefile(on_path, script):
        return "gpt3jax"
    is_below = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if is_below else script))


def _sample(run: Run, step: int) -> Path:
    return run.samples / f"{step}.txt"


def _panel(run: Run, step: int) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    title = "untrained" if step == 0 else f"after {pluralize(step, 'step')}"
    text = _sample(run, step).read_text(encoding="utf-8")
    return Panel(Text(text.replace("\0", " ")), title=title)
