"""What is measured of a model while it trains: validation loss, tasks, and a sample to read."""

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
"""Of the samples shown while training: bold enough for a small model to be readable."""


class Evaluation:
    """The same validation windows and the same prompt, for each set of parameters."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, tokenizer: Path, base: Data | None = None
    ):
        """Read the windows.

        Args:
          experiment: what is trained.
          mesh: where.
          tokenizer: the run's.
          base: what the run that it began from was trained on; its held-out part is measured, too.

        Raises:
          ConfigError: nothing was held out, or it is not the data's tokenizer.
        """
        self._experiment = experiment
        known = load_manifest(experiment.data.sources[0].path).tokenizer
        self._tokenizer = Tokenizer.load(tokenizer, known)
        windows, model = experiment.evaluate.windows, experiment.model
        self._held_out = {
            name: loader.held_out(measured, windows, model.context)
            for name, measured in (("val", experiment.data), ("base_val", base))
            if measured
        }
        self._token_bytes = token_lengths(self._tokenizer, model.padded_vocabulary)
        self._generator: Generator | None = None
        self.is_compiled = False
        """Whether it was all done once."""
        self._mesh, self._scorer = mesh, None
        asked = experiment.evaluate
        self._tasks = load_tasks(
            asked.tasks, words=self._words, count=asked.examples, seed=experiment.seed
        )

    def measure(self, params: Params, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        """The loss over the held-out windows; None if it was asked to stop in between.

        `val_loss` is in nats/token, `val_bits_per_byte` over the bytes of the same windows, of
        which there are `val_windows`, of `val_windows_available`. Where the run began from
        another, the same as `base_val_...` over what that one was trained on. Of tasks:
        TASK_K_shot, from 0 to 1.
        """
        found = {}
        for name, held_out in self._held_out.items():
            measured = perplexity(
                params, self._experiment.model, self._mesh, held_out, self._token_bytes,
                lambda _: is_stopping(),
            )  # fmt: skip
            if measured is None:
                return None
            found |= {
                f"{name}_loss": measured.per_token,
                f"{name}_bits_per_byte": measured.bits_per_byte,
                f"{name}_windows": measured.windows,
                f"{name}_windows_available": measured.available,
            }
        for setting in self._asked(params) if self._tasks else ():
            found[f"{setting['task']}_{setting['shots']}_shot"] = setting["score"]
            if is_stopping():
                return None
        if self._scorer:
            self._scorer.params = None  # Between evaluations the devices hold no copy.
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
        text = evaluate.prompt + "".join(pieces)
        self._generator.params = None
        return text
