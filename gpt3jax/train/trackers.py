"""Trackers: programs that receive every logged record, beside metrics.jsonl.

Each runs in a thread of its own behind a queue, so that one that fails, hangs or is slow neither
stops nor delays training. A run that resumes continues what was tracked: RUN/tracker_id names it.
Credentials, servers and offline modes are those of the packages (WANDB_MODE=offline,
MLFLOW_TRACKING_URI, TRACKIO_DIR).
"""

from __future__ import annotations

import importlib.util
import queue
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from gpt3jax.errors import ConfigError, check_choice
from gpt3jax.run_dir import Run, write_atomic

PROJECT = "gpt3jax"
DEFAULT = ("tensorboard",)
MOST_QUEUED = 1000
"""Records that wait for a tracker; further ones are dropped, and it is said."""
CLOSE_S = 30.0
"""Seconds that the end of a session waits for a tracker."""


class Tracker(Protocol):
    """Receives every logged record; see `TRACKERS`."""

    def log(self, record: dict[str, float], step: int) -> None:
        """Log the finite metrics of a step, by name."""

    def text(self, name: str, text: str, step: int) -> None:
        """Log a text that the model generated at a step."""

    def close(self) -> None:
        """Called at the end of the session."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Run, resumed_at: int):
        self._writer = _tensorboardx().SummaryWriter(
            str(run.tensorboard), purge_step=resumed_at + 1
        )

    def log(self, record: dict[str, float], step: int) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


def _tensorboardx() -> Any:
    """The package, which only training needs, imported without PyTorch.

    It would import PyTorch wherever that is installed, which takes the start of a run 5 s.
    """
    if "torch" in sys.modules:
        return importlib.import_module("tensorboardX")
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module("tensorboardX")
    finally:
        del sys.modules["torch"]


class WandB:
    """Weights & Biases; offline runs are in RUN/wandb."""

    def __init__(self, run: Run, resumed_at: int):
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=run.path.name, id=tracker_id(run), resume="allow",
            dir=str(run.path), config=asdict(run.experiment()),
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, record: dict[str, float], step: int) -> None:
        self._run.log(record, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: text}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run: the first session's configuration as parameters, texts as artifacts."""

    def __init__(self, run: Run, resumed_at: int):
        import mlflow

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        project = found.experiment_id if found else self._client.create_experiment(PROJECT)
        own = f"tags.{PROJECT} = '{tracker_id(run)}'"
        if earlier := self._client.search_runs([project], own, max_results=1):
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return
        tags = {PROJECT: tracker_id(run)}
        self._id = self._client.create_run(project, tags=tags, run_name=run.path.name).info.run_id
        # MLflow takes the value of a parameter once: these are the first session's.
        for name, value in _flat(asdict(run.experiment())):
            self._client.log_param(self._id, name, value)

    def log(self, record: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(k, v, now, step) for k, v in record.items()]
        self._client.log_batch(self._id, metrics)

    def text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self._id, text, f"{name}/{step}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """Trackio, whose runs are local files unless it is told otherwise."""

    def __init__(self, run: Run, resumed_at: int):
        import trackio

        self._markdown = trackio.Markdown
        self._run = trackio.init(
            PROJECT, name=f"{run.path.name}-{tracker_id(run)}", resume="allow", embed=False,
            config=dict(_flat(asdict(run.experiment()))), auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, record: dict[str, float], step: int) -> None:
        self._run.log(record, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._markdown(f"```\n{text}\n```")}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Run, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Made at the start of each session, of the run and the step at which it resumes."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and are installed. Does not import them.

    Raises:
      ConfigError: one does not exist, or its package is missing.
    """
    for name in names:
        check_choice("--tracker", name, tuple(TRACKERS))
        if name in ("wandb", "mlflow", "trackio") and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--tracker {name} needs a package that is not here. Install it: "
                "pip install 'gpt3jax[trackers]'"
            )


def tracker_id(run: Run) -> str:
    """What names this run to trackers, also after it has resumed or moved."""
    file = run.path / "tracker_id"
    if not file.exists():
        write_atomic(file, secrets.token_hex(4) + "\n")
    return file.read_text().strip()


class Background:
    """A tracker in a thread of its own. What fails there is a warning."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name, self._make = name, make
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(MOST_QUEUED)
        self._has_failed = self._is_full = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker later, in order; never waits."""
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            if not (self._is_full or self._has_failed):
                self._warn(f"is {MOST_QUEUED} records behind: further ones are not sent to it")
            self._is_full = True

    def close(self) -> None:
        """Let the tracker finish what it has, for at most `CLOSE_S`."""
        self.send("close")
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"has not finished in {CLOSE_S:.0f} s and is left behind")

    def _work(self) -> None:
        try:
            tracker = self._make()
            method = ""
            while method != "close":
                method, arguments = self._queue.get()
                getattr(tracker, method)(*arguments)
        # Packages raise what they like, and `wandb` also exits.
        except (Exception, SystemExit) as error:
            self._has_failed = True
            self._warn(f"has failed, and gets nothing more: {type(error).__name__}: {error}")

    def _warn(self, what: str) -> None:
        warnings.warn(f"tracker {self._name} {what}", stacklevel=3)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries, by dotted name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}".lstrip("."))
    else:
        yield name, value if isinstance(value, int | float | str) else str(value)
