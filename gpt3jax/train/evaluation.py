"""Evaluation during training: validation loss, tasks and a text sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gpt3jax.config import Data, Experiment
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.evals.perplexity import perplexity, token_lengths
from gpt3jax.evals.protocol import Protocol, evaluate
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.evals.tasks.words import words_in
from gpt3jax.model.init import Params

SAMPLING = Sampling(temperature=0.5, top_p=0.9)
"""Sampling of the texts shown during training; chosen for readable text from small models."""


class Evaluation:
    """Measures parameters on fixed held-out windows, tasks and prompt."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, tokenizer: Path, base: Data | None = None
    ):
        """Open the held-out windows.

        Args:
          experiment: the experiment.
          mesh: the mesh of the training.
          tokenizer: file of the run's tokenizer.
          base: data of the parent run in fine-tuning, whose held-out windows are measured, too.

        Raises:
          ConfigError: there are no held-out windows, or the data has another tokenizer.
        """
        self._experiment = experiment
        expected_hash = load_manifest(experiment.data.sources[0].path).tokenizer
        self._tokenizer = Tokenizer.load(tokenizer, expected_hash)
        windows, model = experiment.evaluate.windows, experiment.model
        self._held_out = {
            name: loader.held_out(data, windows, model.context)
            for name, data in (("val", experiment.data), ("base_val", base))
            if data
        }
        self._token_bytes = token_lengths(self._tokenizer, model.padded_vocabulary)
        self._generator: Generator | None = None
        self.is_compiled = False
        """Whether everything has run once and is therefore compiled."""
        self._mesh, self._scorer = mesh, None
        config = experiment.evaluate
        self._tasks = load_tasks(
            config.tasks, words=self._words, count=config.examples, seed=experiment.seed
        )

    def measure(self, params: Params, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Metrics on the held-out windows and tasks; None if interrupted by `is_stopping`.

        `val_loss` is in nats/token and `val_bits_per_byte` in bits/byte, both over `val_windows` of
        the `val_windows_available` held-out windows. In fine-tuning `base_val_...` is the same for
        the parent run's data. The score of a task is TASK_K_shot, from 0 to 1.
        """
        results = {}
        for name, held_out in self._held_out.items():
            measured = perplexity(
                params,
                self._experiment.model,
                self._mesh,
                held_out,
                self._token_bytes,
                lambda _: is_stopping(),
            )
            if measured is None:
                return None
            results |= {
                f"{name}_loss": measured.per_token,
                f"{name}_bits_per_byte": measured.bits_per_byte,
                f"{name}_windows": measured.windows,
                f"{name}_windows_available": measured.available,
            }
        for setting in self._evaluate_tasks(params) if self._tasks else ():
            results[f"{setting['task']}_{setting['shots']}_shot"] = setting["score"]
            if is_stopping():
                return None
        if self._scorer:
            self._scorer.params = None  # Frees the devices' copy between evaluations.
        return results

    def _evaluate_tasks(self, params: Params) -> Iterator[dict[str, Any]]:
        """Evaluate the tasks on the training mesh, by scoring only, since generation is slow."""
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
        """The experiment's prompt with a sampled continuation."""
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
        text = evaluate.prompt + "".join(pieces)
        self._generator.params = None
        return text
