"""The run: step after step until its tokens are seen, and resumed from where it stopped.

    batch k -> device -> step -> state k+1 -> [ log, evaluate, sample, save ]

The host never waits for the step it has just sent off: it reads the numbers of
the step before. Only an evaluation or a save makes it wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpt3jax.config import Experiment
from gpt3jax.data.manifest import verify
from gpt3jax.run import Run
from gpt3jax.sharding.mesh import check_fits, make_mesh
from gpt3jax.train import ledger
from gpt3jax.train.checkpoint import Checkpoints, Position
from gpt3jax.train.display import Display
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.feed import Feed
from gpt3jax.train.folder import caught_signals, create_or_check, data_identity, only_one
from gpt3jax.train.metrics import Meter, MetricsLog
from gpt3jax.train.schedule import is_done, learning_rate, microbatches, total_tokens
from gpt3jax.train.state import TrainState, abstract_state, sharded_state
from gpt3jax.train.step import compile_train_step


class NotFiniteError(RuntimeError):
    """The loss or the gradient is not a number any more."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    position: Position
    steps_taken: int
    signal: int | None
    """The signal that stopped it early, if one did."""


def train(experiment: Experiment, path: Path) -> Outcome:
    """Start the run at `path`, or resume the one that is there.

    Raises:
      ConfigError: experiment, data, devices and run do not go together.
      NotFiniteError: training diverged; the checkpoints are from before.
    """
    data = data_identity(experiment)
    mesh = make_mesh(experiment.mesh)
    check_fits(experiment, mesh)
    for source in experiment.data.sources:
        verify(source.path)
    run = Run(path)
    with only_one(run), jax.set_mesh(mesh), caught_signals() as caught:
        create_or_check(run, experiment, {**experiment.identity(), "data": data})
        checkpoints = Checkpoints(run.checkpoints, experiment.train.keep)
        start = checkpoints.latest() or Position()
        if is_done(start.step, start.sequences * experiment.model.context, experiment):
            return Outcome(start, 0, None)
        ledger.record(
            run.ledger_file, "resume" if start.step else "start", step=start.step,
            mesh=dict(mesh.shape), device=jax.devices()[0].device_kind, **ledger.code_version(),
        )  # fmt: skip
        loop = _Loop(experiment, run, mesh, checkpoints, start, caught)
        try:
            end = loop.go()
        finally:
            loop.close()
        signal = caught[0] if caught else None
        ledger.record(run.ledger_file, "stop", step=end.step, signal=signal)
        return Outcome(end, end.step - start.step, signal)


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
    ):
        self.experiment, self.run, self.mesh = experiment, run, mesh
        self.checkpoints, self.position, self.caught = checkpoints, start, caught
        self.evaluation = Evaluation(experiment, mesh, run.tokenizer_file)
        self.feed = Feed(experiment, mesh, start.sequences)
        self.step = compile_train_step(experiment, mesh)
        self.log = MetricsLog(run.metrics_file, run.tensorboard, start.step)
        self.meter = Meter(experiment.model)
        silent = jax.process_index() != 0
        self.display = Display(total_tokens(experiment), self.tokens, silent=silent)

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
        if unread:  # A signal came after the question whether to save, before the loop's own.
            self._finish(unread, state)
        self.checkpoints.wait()
        return self.position

    def close(self) -> None:
        self.display.close()
        self.feed.close()
        self.log.close()

    def _first_state(self) -> TrainState:
        if self.position.step:
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
        windows, waited = self.feed.take(count)
        state, metrics = self.step(state, windows, jnp.int32(count), jnp.float32(rate))
        sequences = count * experiment.microbatch
        self.position = Position(self.position.step + 1, self.position.sequences + sequences)
        return state, {
            "step": self.position.step,
            "sequences": self.position.sequences,
            "tokens": self.tokens,
            **metrics,
            "learning_rate": rate,
            "batch_tokens": sequences * experiment.model.context,
            "data_wait_s": waited,
        }

    def _finish(self, numbers: dict[str, Any], state: TrainState | None = None) -> None:
        """Wait for a step's numbers and log them; given its state, evaluate and save as due."""
        record = {**numbers, "loss": float(numbers["loss"])}
        record["grad_norm"] = float(numbers["grad_norm"])
        self._check_finite(record)
        self.meter.add(record["batch_tokens"], record["data_wait_s"])
        if state is None and record["step"] % self.experiment.train.log_every:
            return
        record |= self.meter.read()
        if state is not None and self._evaluation_is_due():
            record |= self._evaluate(state)
        self._write(record)
        if state is not None and self._save_is_due():
            self.checkpoints.save(state, self.position)
            ledger.record(self.run.ledger_file, "save", step=record["step"])
        self.meter.restart()

    def _check_finite(self, record: dict[str, Any]) -> None:
        if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            ledger.record(self.run.ledger_file, "not finite", step=record["step"])
            raise NotFiniteError(
                f"step {record['step']}: loss is {record['loss']}, gradient norm "
                f"{record['grad_norm']}: training diverged. Lower "
                "--schedule.peak-learning-rate; the checkpoints are from before"
            )

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        step = self.position.step
        text = self.evaluation.sample(state.params)
        if text:
            self.run.samples.mkdir(exist_ok=True)
            (self.run.samples / f"{step}.txt").write_text(text, encoding="utf-8")
            self.log.text("sample", text, step)
        ledger.record(self.run.ledger_file, "evaluate", step=step)
        return self.evaluation.measure(state.params)

    def _write(self, record: dict[str, Any]) -> None:
        self.log.write(record)
        self.display.show(record)

    def _is_last(self) -> bool:
        return bool(self.caught) or is_done(self.position.step, self.tokens, self.experiment)

    def _evaluation_is_due(self) -> bool:
        done = is_done(self.position.step, self.tokens, self.experiment)
        return done or self.position.step % self.experiment.evaluate.every == 0

    def _save_is_due(self) -> bool:
        return self._is_last() or self.position.step % self.experiment.train.save_every == 0
