"""The run: step after step until its tokens are seen, and resumed from where it stopped.

    batch k -> device -> step -> state k+1 -> [ log, evaluate, sample, save ]

The host never waits for the step it has just sent off: it reads the numbers of
the step before. Only an evaluation or a save makes it wait.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import jax
import numpy as np

from gpt3jax.config import Experiment
from gpt3jax.data.manifest import verify
from gpt3jax.plan.choose import mesh_for
from gpt3jax.run import Run
from gpt3jax.sharding import hosts
from gpt3jax.train import ledger
from gpt3jax.train.checkpoint import Checkpoints, Position
from gpt3jax.train.display import Display
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.feed import Feed
from gpt3jax.train.folder import (
    caught_signals,
    check_is_shared,
    create_or_check,
    data_identity,
    only_one,
)
from gpt3jax.train.metrics import Meter, MetricsLog
from gpt3jax.train.schedule import is_done, learning_rate, microbatches, total_tokens
from gpt3jax.train.state import TrainState, abstract_state, sharded_state
from gpt3jax.train.step import compile_train_step
from gpt3jax.train.watchdog import Watchdog


class NotFiniteError(RuntimeError):
    """The loss or the gradient is not a number any more."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    position: Position
    steps_taken: int
    signal: int | None
    """The signal that stopped it early, if one did."""


def train(experiment: Experiment, path: Path, stuck_after: float = 0.0) -> Outcome:
    """Start the run at `path`, or resume the one that is there.

    Every process of a job calls this; the first alone writes what is shared.

    Args:
      experiment: what to train.
      path: the run's folder, which all hosts see.
      stuck_after: of several processes, seconds without progress after which one
        ends itself; 0: never.

    Raises:
      ConfigError: experiment, data, devices, hosts and run do not go together.
      NotFiniteError: training diverged; the checkpoints are from before.
    """
    mesh, why, data = _agreed(experiment)
    run = Run(path)
    with ExitStack() as held:
        hosts.on_first(lambda: held.enter_context(only_one(run)))
        caught = held.enter_context(caught_signals())
        held.enter_context(jax.set_mesh(mesh))
        identity = {**experiment.identity(), "data": data}
        hosts.on_first(lambda: create_or_check(run, experiment, identity))
        hosts.agree(lambda: {"run": check_is_shared(run)})
        # Alone, nobody waits for us: a slow step of a laptop is no reason to end.
        seconds = stuck_after if jax.process_count() > 1 else 0.0
        watchdog = Watchdog(seconds, run.stuck_file(jax.process_index()))
        held.callback(watchdog.close)
        checkpoints = Checkpoints(run.checkpoints, experiment.train.keep)
        start = checkpoints.latest() or Position()
        if is_done(start.step, start.sequences * experiment.model.context, experiment):
            return Outcome(start, 0, None)
        _record(
            run, "resume" if start.step else "start", step=start.step, mesh=dict(mesh.shape),
            why=why, device=jax.devices()[0].device_kind, hosts=jax.process_count(),
            **ledger.code_version(),
        )  # fmt: skip
        loop = _Loop(experiment, run, mesh, checkpoints, start, caught, watchdog)
        if "auto" in dataclasses.asdict(experiment.mesh).values():
            loop.display.note(why)
        try:
            end = loop.go()
        finally:
            loop.close()
        signal = (caught or [SIGTERM])[0] if loop.is_stopping else None
        _record(run, "stop", step=end.step, signal=signal)
        return Outcome(end, end.step - start.step, signal)


def _agreed(experiment: Experiment) -> tuple[jax.sharding.Mesh, str, dict[str, Any]]:
    """Mesh, why it, and the data's identity, when all hosts have the same code and experiment."""
    mesh, why = mesh_for(experiment)

    def facts() -> dict[str, Any]:
        data = data_identity(experiment)
        for source in experiment.data.sources:
            verify(source.path)
        return {
            "code": ledger.code_version(),
            "experiment": dataclasses.asdict(experiment),
            "data": data,
        }

    return mesh, why, hosts.agree(facts)["data"]


def _record(run: Run, event: str, **facts: Any) -> None:
    if hosts.is_first():
        ledger.record(run.ledger_file, event, **facts)


class _Loop:
    """One call of `train`: the position, and everything that records it."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        start: Position,
        caught: list[int],
        watchdog: Watchdog,
    ):
        self.experiment, self.run, self.mesh = experiment, run, mesh
        self.checkpoints, self.position, self.caught = checkpoints, start, caught
        self.watchdog = watchdog
        self.is_stopping = False
        """Whether a host has caught a signal; all see it at the same step."""
        self.evaluation = Evaluation(experiment, mesh, run.tokenizer_file)
        self.feed = Feed(experiment, mesh, start.sequences)
        self.step, self.is_compiled = compile_train_step(experiment, mesh), False
        self.log = MetricsLog(run.metrics_file, run.tensorboard, start.step)
        self.meter = Meter(experiment.model)
        self.display = Display(total_tokens(experiment), self.tokens, silent=not hosts.is_first())

    @property
    def tokens(self) -> int:
        """Tokens seen: a Python integer, since 300e9 overflows int32."""
        return self.position.sequences * self.experiment.model.context

    def go(self) -> Position:
        """Train until done or stopped by a signal; the last state is saved either way."""
        state = self._first_state()
        unread: dict[str, Any] | None = None
        self.meter.restart()
        while not self._is_last():
            state, numbers = self._send_step(state)
            if unread:
                self._finish(unread)
            unread = numbers
            if self._evaluation_is_due() or self._save_is_due():
                self._finish(unread, state)
                unread = None
        self.checkpoints.wait()
        return self.position

    def close(self) -> None:
        self.display.close()
        self.feed.close()
        self.log.close()

    def _first_state(self) -> TrainState:
        if self.position.step:
            self.watchdog.enter("restore", self.position.step)
            abstract = abstract_state(self.experiment, self.mesh)
            return self.checkpoints.restore(self.position.step, abstract)
        state = sharded_state(self.experiment, self.mesh)
        self._write({"step": 0, "sequences": 0, "tokens": 0, **self._evaluate(state)})
        return state

    def _send_step(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Send the next step to the devices; its numbers are not there yet."""
        experiment = self.experiment
        rate = learning_rate(self.tokens, experiment.schedule)
        count = microbatches(self.tokens, experiment)
        self.watchdog.enter("data", self.position.step + 1)
        windows, waited = self.feed.take(count)
        self.watchdog.enter("step" if self.is_compiled else "compile")
        state, metrics = self.step(state, windows, np.int32(count), np.float32(rate))
        self.is_compiled = True
        sequences = count * experiment.microbatch
        self.position = Position(self.position.step + 1, self.position.sequences + sequences)
        return state, {
            "step": self.position.step,
            "sequences": self.position.sequences,
            "tokens": self.tokens,
            **metrics,
            "stop": hosts.any_host(bool(self.caught), self.mesh),
            "learning_rate": rate,
            "batch_tokens": sequences * experiment.model.context,
            "data_wait_s": waited,
        }

    def _finish(self, numbers: dict[str, Any], state: TrainState | None = None) -> None:
        """Wait for a step's numbers and log them; given its state, evaluate and save as due."""
        self.watchdog.enter("step")
        record = {**numbers, "loss": float(numbers["loss"])}
        record["grad_norm"] = float(numbers["grad_norm"])
        self._check_finite(record)
        self.is_stopping |= bool(record.pop("stop"))
        self.meter.add(record["batch_tokens"], record["data_wait_s"])
        if state is None and record["step"] % self.experiment.train.log_every:
            return
        record |= self.meter.read()
        if state is not None and self._evaluation_is_due():
            record |= self._evaluate(state)
        self._write(record)
        if state is not None and self._save_is_due():
            self.watchdog.enter("save")
            self.checkpoints.save(state, self.position)
            _record(self.run, "save", step=record["step"])
        self.meter.restart()

    def _check_finite(self, record: dict[str, Any]) -> None:
        if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            _record(self.run, "not finite", step=record["step"])
            raise NotFiniteError(
                f"step {record['step']}: loss is {record['loss']}, gradient norm "
                f"{record['grad_norm']}: training diverged. Lower "
                "--schedule.peak-learning-rate; the checkpoints are from before"
            )

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        step = self.position.step
        self.watchdog.enter("evaluate")
        text = self.evaluation.sample(state.params)
        if text and hosts.is_first():
            self.run.samples.mkdir(exist_ok=True)
            (self.run.samples / f"{step}.txt").write_text(text, encoding="utf-8")
            self.log.text("sample", text, step)
        _record(self.run, "evaluate", step=step)
        return self.evaluation.measure(state.params)

    def _write(self, record: dict[str, Any]) -> None:
        self.log.write(record)
        self.display.show(record)

    def _is_last(self) -> bool:
        return self.is_stopping or is_done(self.position.step, self.tokens, self.experiment)

    def _evaluation_is_due(self) -> bool:
        done = is_done(self.position.step, self.tokens, self.experiment)
        return done or self.position.step % self.experiment.evaluate.every == 0

    def _save_is_due(self) -> bool:
        return self._is_last() or self.position.step % self.experiment.train.save_every == 0
