"""The training loop.

    batch k -> device -> step -> state k+1 -> [ log, save, evaluate, sample ]

The host reads the metrics of a step only after it has dispatched the next one, so the device does
not idle. It waits for the newest step only before an evaluation or a save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer, Position, SaveError
from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.config import Data, Experiment
from gpt3jax.errors import RunError
from gpt3jax.run_dir import Run
from gpt3jax.runtime.kept_programs import KeptPrograms
from gpt3jax.sharding import processes
from gpt3jax.train import early_stopping
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.metrics import Meter, MetricsLog
from gpt3jax.train.monitor import event_log, nonfinite
from gpt3jax.train.monitor.display import Display
from gpt3jax.train.monitor.loss_spikes import LASTING, Divergence, Spikes
from gpt3jax.train.monitor.noise_scale import NoiseScale
from gpt3jax.train.monitor.phase_timer import PhaseTimer
from gpt3jax.train.monitor.profile import StepTrace, Trace
from gpt3jax.train.run_setup import identities
from gpt3jax.train.schedules import batch_windows, is_done, total_tokens
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import Metrics
from gpt3jax.train.stepper import Batch, Stepper
from gpt3jax.train.trackers import DEFAULT

BAD_STEPS = 3
"""Number of consecutive non-finite steps that ends the run."""
SAVE_TRIES = 3
"""Number of consecutive failed saves that ends a run of one process; with several, one does."""


class NotFiniteError(RunError):
    """The loss or the gradient has become NaN or infinite."""


class Loop:
    """One training session: steps, logging, checkpoints and evaluations."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpointer,
        start: Position,
        caught: list[int],
        clock: PhaseTimer,
        reached: int,
        base: Data | None = None,
        trace: StepTrace | None = None,
        trackers: Sequence[str] = DEFAULT,
    ):
        """Prepare to continue from `start`; earlier sessions reached step `reached`.

        `base` is the data of the parent run in fine-tuning. `caught` receives caught signals.
        `trace` traces some of the steps, on process 0.
        """
        self.experiment, self.run, self.mesh = experiment, run, mesh
        self.checkpoints, self.caught = checkpoints, caught
        self.clock, self.reached = clock, reached
        self.trace = trace if processes.is_first() else None
        self.is_stopping = False
        """Whether a host has caught a signal; all hosts set it at the same step."""
        self.bad_steps = self.failed_saves = 0
        self.save_again = False
        self.skips, self.code = run.skips(), event_log.code_version()
        self.identity = processes.on_first(lambda: identities(run))[-1]
        self.spikes = Spikes()
        self.evaluation = Evaluation(experiment, mesh, run.tokenizer_file, base)
        programs = KeptPrograms(run.autotune, is_writer=processes.is_first())
        self.stepper = Stepper(experiment, mesh, start, self.skips, programs=programs)
        self.log = MetricsLog(run, start.step, trackers)
        # `MetricsLog` has removed the records after the resumed step.
        logged = run.metrics() if processes.is_first() else []
        self.divergence = Divergence(experiment.model.vocabulary, logged)
        self.noise = NoiseScale(experiment.train.log_every, logged)
        self.evaluations = processes.on_first(lambda: early_stopping.evaluations(run))
        self._keep_best()
        self.meter = Meter(experiment.model)
        self.display = Display(
            total_tokens(experiment), self.tokens, start.step, silent=not processes.is_first()
        )

    @property
    def position(self) -> Position:
        """The position after the last dispatched step."""
        return self.stepper.position

    @property
    def tokens(self) -> int:
        """Tokens seen, a Python integer since 300e9 overflows int32."""
        return self.position.sequences * self.experiment.model.context

    def go(self, state: TrainState) -> Position:
        """Train until done or stopped by a signal; saves the last state in both cases."""
        if evaluation_is_missing(self.run, self.position, self.experiment):
            self._evaluate(state)
        unread: tuple[Batch, Metrics] | None = None
        self.meter.restart()
        while not self._is_last():
            stop = processes.any_host(self.caught, self.mesh)
            self.clock.enter("data", self.position.step)
            batch = self.stepper.next_batch()
            if self.trace:
                self.trace.begin(batch.after.step, state, self.run.profiles)
            self._enter_step()
            with jax.profiler.StepTraceAnnotation("train", step_num=batch.after.step):
                state, metrics = self._step(state, batch)
            if unread:
                self._finish(*unread, state)
            unread = batch, metrics
            self.is_stopping |= bool(stop)
            if self.checkpoints.has_failed():
                self._await_save()
            is_traced = self.trace is not None and self.trace.ends_at(batch.after.step)
            if is_traced or self._is_pausing():
                self._finish(*unread, state)
                unread = None
            if is_traced:
                self._end_trace(state, batch)
            if self._is_pausing():
                self._pause(state)
        self._wait_for_save(state)
        if self._verdict().is_over:
            self._end_early()
        return self.position

    def close(self) -> None:
        if self.trace and (problem := self.trace.close(self.position.step)):
            self.display.note(problem)
        self.display.close()
        self.stepper.feed.close()
        self.log.close()

    def _enter_step(self) -> None:
        done_before = "replay" if self.position.step < self.reached else "step"
        phase = done_before if self.stepper.is_compiled else "compile"
        self.clock.enter(phase, self.position.step)

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Dispatch a step; the first one is compiled."""
        if self.stepper.is_compiled:
            return self.stepper.step(state, batch)
        with self.display.compiling("train_step"):
            stepped = self.stepper.step(state, batch)
        self._note_kernels(batch)
        return stepped

    def _end_trace(self, state: TrainState, batch: Batch) -> None:
        """End the trace, and show what it says."""
        self.clock.enter("start", self.position.step)
        if self.trace:
            self.trace.end(state)
            program = self.stepper.program(state, batch)
            self.display.note(self.trace.report(Trace(self.trace.folder, program, batch.count)))
        self.meter.restart()

    def _note_kernels(self, batch: Batch) -> None:
        if batch.before.step > 0 and self.stepper.has_other_kernels:
            self.display.note(
                "the run has no compiled step for this GPU and these libraries, so XLA chose "
                "kernels anew: losses may differ in their last bits"
            )

    def _finish(self, batch: Batch, metrics: Metrics, state: TrainState) -> None:
        """Wait for the metrics of a step, check them, and log them if due."""
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        batch_tokens = len(batch.sequences) * self.experiment.model.context
        self.meter.add(batch_tokens, batch.waited)
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if not is_finite or self._is_logged(batch):
            record = {name: float(value) for name, value in metrics.items()} | {
                "learning_rate": batch.learning_rate,
                "batch_tokens": batch_tokens,
                "data_wait_s": batch.waited,
            }
            # The noise scale estimate is valid only if all microbatches are full.
            is_complete = len(batch.sequences) % self.experiment.microbatch == 0
            record = self.noise.add(record, batch.after.step, is_complete)
            self._write(batch.after, record | self.meter.read())
            self.meter.restart()
        if not is_finite:
            self._report_bad_step(batch, state, loss, norm)
            return
        self.bad_steps = 0
        if usual := self.spikes.see(loss):
            self._report_spike(batch, loss, usual)
        if self.divergence.see(loss):
            self._report_divergence(batch.after.step, loss)

    def _is_logged(self, batch: Batch) -> bool:
        """Whether to log a step: every `log_every` steps, before a save or an evaluation, and
        before the batch size changes, so that the record determines all batches (history.py)."""
        tokens = batch.after.sequences * self.experiment.model.context
        is_due = batch.after.step % self.experiment.train.log_every == 0
        is_pausing = batch.after == self.position and self._is_pausing()
        is_growing = batch_windows(tokens, self.experiment) != len(batch.sequences)
        return is_due or is_pausing or is_growing

    def _report_divergence(self, step: int, loss: float) -> None:
        self._record("diverged", step=step, loss=loss, limit=self.divergence.limit)
        self.display.note(
            f"step {step}: loss {loss:.3f} nats/token: training has diverged, {LASTING} steps in a "
            f"row are worse than guessing ({self.divergence.limit:.3f}). Lower "
            "--schedule.peak-learning-rate, or go back: --rewind-to STEP"
        )

    def _pause(self, state: TrainState) -> None:
        """Save and evaluate between two steps; save first, so that a kill loses least."""
        if saved := self._save_is_due():
            self._save(state)
        if self._evaluation_is_due() and not self.is_stopping:
            self._evaluate(state)
            if self.is_stopping and not saved:
                self._save(state)
        self.meter.restart()

    def _save(self, state: TrainState) -> None:
        self.clock.enter("save", self.position.step)
        self.log.sync()
        step, sequences = self.position.step, self.position.sequences
        skips = tuple(skip for skip in self.skips if skip.sequences < sequences)
        draft = CheckpointManifest(step, sequences, skips, self.identity, self.code, leaves={})
        began = time.monotonic()

        def saved(manifest: CheckpointManifest) -> None:
            seconds = round(time.monotonic() - began, 3)
            self._record("save", step=step, state=manifest.state, seconds=seconds)
            self.failed_saves = 0

        self._await_save()
        self.save_again = False
        try:
            self.checkpoints.save(state, draft, saved)
        except SaveError as error:
            self._report_failed_save(error)

    def _await_save(self) -> bool:
        """Wait for the current save; returns whether it succeeded."""
        try:
            self.checkpoints.wait()
        except SaveError as error:
            self._report_failed_save(error)
        return not self.save_again

    def _wait_for_save(self, state: TrainState) -> None:
        """Save until the state is on disk, or `SAVE_TRIES` is reached."""
        while not self._await_save():
            self._save(state)

    def _report_failed_save(self, error: SaveError) -> None:
        self._record("save failed", step=self.position.step, what=str(error))
        self.failed_saves += 1
        if self.failed_saves == SAVE_TRIES or jax.process_count() > 1:
            raise error
        self.display.note(f"{error}. Trying again")
        time.sleep(4 ** (self.failed_saves - 1))
        self.save_again = True

    def _evaluate(self, state: TrainState) -> None:
        """Evaluate and sample; a signal interrupts this, and the resumed run repeats it."""
        step = self.position.step
        self.clock.enter("evaluate" if self.evaluation.is_compiled else "compile", step)

        def is_stopping() -> bool:
            self.is_stopping |= bool(processes.any_host(self.caught, self.mesh))
            return self.is_stopping

        text = ""
        with ExitStack() as stack:
            if not self.evaluation.is_compiled:
                stack.enter_context(self.display.compiling("evaluation"))
            results = self.evaluation.measure(state.params, is_stopping)
            if results is not None and not is_stopping():
                text = self.evaluation.sample(state.params)
        if results is None or self.is_stopping:
            return
        if text:
            self.log.sample(self.run.samples / f"{step}.txt", text, step)
        self._record("evaluate", step=step)
        self._write(self.position, results)
        if step > 0:
            self.evaluations.append([step, results["val_loss"]])
            self._keep_best()

    def _verdict(self) -> early_stopping.Verdict:
        return early_stopping.verdict(self.evaluations, self.experiment.train.patience)

    def _keep_best(self) -> None:
        if self.experiment.train.patience:
            self.checkpoints.best = self._verdict().best

    def _end_early(self) -> None:
        patience, best = self.experiment.train.patience, self._verdict().best
        processes.on_first(
            lambda: early_stopping.finish_interrupted_stop(self.run, self.checkpoints, patience)
        )
        self.display.note(
            f"early stopping: the validation loss was best at step {best} and has not improved in "
            f"{patience} evaluations since; the run ends at its checkpoint"
        )

    def _report_bad_step(self, batch: Batch, state: TrainState, loss: float, norm: float) -> None:
        """Record a non-finite step, whose update was not applied."""
        step, self.bad_steps = batch.after.step, self.bad_steps + 1
        windows = [batch.before.sequences, batch.after.sequences]
        self._record("not finite", step=step, loss=str(loss), windows=windows)
        where = ""
        if self.bad_steps == 1:
            model = self.experiment.model
            first_bad = nonfinite.first_bad(state.params, batch.windows, batch.count, model)
            replay = f"gpt3jax verify {self.run.path} --replay {step - 1}:{step}"
            incident = nonfinite.Incident(
                step, loss, norm, batch.learning_rate, batch.sequences, first_bad, replay
            )
            if processes.is_first():
                page = nonfinite.write(self.run, incident, self.stepper.feed.order)
                where = f"First bad: {first_bad}. See {page}"
        self.display.note(f"step {step}: loss is {loss}, its update was left out. {where}")
        if self.bad_steps == BAD_STEPS:
            self._save(state)
            self._wait_for_save(state)
            raise NotFiniteError(
                f"step {step}: loss is {loss}, gradient norm {norm}, {BAD_STEPS} steps in a row: "
                f"training diverged. See {self.run.incidents}; the last state is finite and saved. "
                "Lower --schedule.peak-learning-rate, or --rewind-to a step"
            )

    def _report_spike(self, batch: Batch, loss: float, usual: dict[str, float]) -> None:
        step, windows = batch.after.step, [batch.before.sequences, batch.after.sequences]
        self._record("spike", step=step, loss=loss, windows=windows, **usual)
        self.display.note(
            f"step {step}: loss {loss:.3f} is a spike (usually {usual['mean']:.3f} "
            f"± {usual['deviation']:.3f}). If it does not pass: --rewind-to STEP --skip BATCHES"
        )

    def _write(self, at: Position, values: dict[str, Any]) -> None:
        tokens = at.sequences * self.experiment.model.context
        record = {"step": at.step, "sequences": at.sequences, "tokens": tokens, **values}
        self.log.write(record)
        self.display.show(record)

    def _record(self, event: str, **facts: Any) -> None:
        if processes.is_first():
            event_log.record(self.run.ledger_file, event, **facts)

    def _is_last(self) -> bool:
        is_over = self.is_stopping or self._verdict().is_over
        return is_over or is_done(self.position.step, self.tokens, self.experiment)

    def _is_pausing(self) -> bool:
        """Whether the loop pauses at this position for a save or an evaluation."""
        return self._save_is_due() or self._evaluation_is_due()

    def _evaluation_is_due(self) -> bool:
        return evaluation_is_due(self.position, self.experiment)

    def _save_is_due(self) -> bool:
        step, train = self.position.step, self.experiment.train
        # With early stopping every evaluation needs a checkpoint.
        is_measured = train.patience > 0 and self._evaluation_is_due()
        is_due = step % train.save_every == 0 or is_measured
        return self._is_last() or self.save_again or is_due


def evaluation_is_due(at: Position, experiment: Experiment) -> bool:
    """Whether to evaluate at this step: the first, the last, and every `evaluate.every` steps."""
    tokens = at.sequences * experiment.model.context
    return is_done(at.step, tokens, experiment) or at.step % experiment.evaluate.every == 0


def evaluation_is_missing(run: Run, at: Position, experiment: Experiment) -> bool:
    """Whether the evaluation of this step is due but was not logged before the session ended."""

    def is_logged() -> bool:
        return any(r["step"] == at.step and "val_loss" in r for r in run.metrics())

    is_due = evaluation_is_due(at, experiment)
    return is_due and (at.step == 0 or not processes.on_first(is_logged))
