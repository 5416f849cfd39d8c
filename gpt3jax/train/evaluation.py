"""What is measured of a model while it trains: validation loss, tasks, and a sample to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gpt3jax.config import ConfigError, Data, Experiment
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.evaluate import Protocol, evaluate
from gpt3jax.evals.files import load_tasks
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.words import words_in
from gpt3jax.generate import Generator
from gpt3jax.model.decode import Sampling
from gpt3jax.model.params import Params
from gpt3jax.sharding import hosts
from gpt3jax.sharding.rules import batch_sharding
from gpt3jax.train.metrics import bits_per_byte
from gpt3jax.train.step import compile_loss

SAMPLING = Sampling(temperature=0.5, top_p=0.9)
"""Of the samples shown while training: bold enough for a small model to be readable."""


class Evaluation:
    """The same validation windows and the same prompt, for each set of parameters."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, tokenizer: Path, base: Data | None = None
    ):
        """Read the windows; they are cut to whole microbatches.

        Args:
          experiment: what is trained.
          mesh: where.
          tokenizer: the run's.
          base: what the run that it began from was trained on; its held-out part is measured, too.

        Raises:
          ConfigError: there are too few for one microbatch, or it is not the data's tokenizer.
        """
        self._experiment = experiment
        known = load_manifest(experiment.data.sources[0].path).tokenizer
        self._tokenizer = Tokenizer.load(tokenizer, known)
        measured = {"val_loss": experiment.data} | ({"base_val_loss": base} if base else {})
        self._batches = {name: _batches(data, experiment, mesh) for name, data in measured.items()}
        self._loss = compile_loss(experiment.model)
        self._bytes_per_token = validation_bytes_per_token(experiment)
        self._generator: Generator | None = None
        self.is_compiled = False
        """Whether it was all done once."""
        self._mesh, self._scorer = mesh, None
        asked = experiment.evaluate
        self._tasks = load_tasks(
            asked.tasks, words=self._words, count=asked.examples, seed=experiment.seed
        )

    def measure(self, params: Params, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        """val_loss in nats/token and val_bits_per_byte; None if it was told to stop in between.

        Where the run began from another: base_val_loss, on what that one was trained on.
        Of tasks: TASK_K_shot, from 0 to 1.
        """
        found = {}
        for name, batches in self._batches.items():
            losses, shares = [], [share for share, _ in batches]
            for share, batch in batches:
                if is_stopping():
                    return None
                losses.append(share * float(self._loss(params, batch)))
            found[name] = float(np.sum(losses) / np.sum(shares))
        found["val_bits_per_byte"] = bits_per_byte(found["val_loss"], self._bytes_per_token)
        for setting in self._asked(params) if self._tasks else ():
            found[f"{setting['task']}_{setting['shots']}_shot"] = setting["score"]
            if is_stopping():
                return None
        return found

    def _asked(self, params: Params) -> Iterator[dict[str, Any]]:
        """The tasks, on the mesh that trains; nothing is generated, which would take long."""
        model = self._experiment.model
        if self._scorer is None:
            self._scorer = Scorer(params, model, self._tokenizer, self._mesh)
        else:
            self._scorer.load(params)
        protocol = Protocol(self._experiment.evaluate.shots, beams=0, seed=self._experiment.seed)
        return evaluate(self._scorer, self._tasks, protocol)

    def _words(self) -> list[str]:
        return words_in(self._experiment.data, self._experiment.model.context, self._tokenizer)

    def sample(self, params: Params) -> str:
        """A continuation of the experiment's prompt, the prompt included."""
        self.is_compiled, evaluate = True, self._experiment.evaluate
        if evaluate.sample_tokens == 0:
            return ""
        if self._generator is None:
            self._generator = Generator(params, self._experiment.model, self._tokenizer)
        else:
            self._generator.load(params)
        pieces = self._generator.text(
            evaluate.prompt,
            new_tokens=evaluate.sample_tokens,
            sampling=SAMPLING,
            seed=self._experiment.seed,
        )
        return evaluate.prompt + "".join(pieces)


def _batches(data: Data, experiment: Experiment, mesh: Mesh) -> list[tuple[float, jax.Array]]:
    """Held-out windows in whole microbatches, each with the share of it that is learned."""
    windows = loader.validation_windows(data, experiment.evaluate.windows, experiment.model.context)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    size = min(experiment.microbatch, len(windows)) // rows * rows
    if size == 0:
        raise ConfigError(
            f"there are {len(windows)} validation windows for {rows} rows of devices: each "
            "row needs one. Prepare more text, or raise --evaluate.windows"
        )
    whole = windows[: len(windows) // size * size].reshape(-1, size, windows.shape[1])
    return [
        (float((batch[:, 1:] >= 0).mean()), hosts.spread(batch, batch_sharding(mesh)))
        for batch in whole
    ]


def validation_bytes_per_token(experiment: Experiment) -> float:
    """Bytes of text per token over the validation splits, weighted as the sources are."""
    sources = experiment.data.sources
    total = sum(source.weight for source in sources)
    return sum(
        source.weight / total * load_manifest(source.path).validation_bytes_per_token
        for source in sources
    )
