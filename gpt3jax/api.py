"""What a notebook needs of a trained model, on one device.

import gpt3jax

model = gpt3jax.load("runs/tiny")
gpt3jax.generate(model, "def main(", new_tokens=40)
gpt3jax.capture(model, "def main(", want=("residual",)).activations["residual"].shape
gpt3jax.evaluate(model, ["reversed_words"], shots=(0, 4), examples=50)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gpt3jax.checkpoint.load import LoadedModel, load_model
from gpt3jax.config import Mesh
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.evals.protocol import Protocol, evaluate_setting, settings_of
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.summary import summarise
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.evals.tasks.words import words_in
from gpt3jax.inspect.capture import capture as capture_tokens
from gpt3jax.model.gpt3 import Edit, Output
from gpt3jax.sharding.mesh import make_mesh


def load(run: str | Path, step: int | None = None) -> LoadedModel:
    """A run's model at a checkpoint, by default the newest.

    Raises:
      ConfigError: there is no such run or checkpoint.
      DamagedError: the checkpoint is not what was saved.
    """
    return load_model(Path(run), step, _one_device())


def generate(
    model: LoadedModel,
    prompt: str = "",
    *,
    new_tokens: int = 200,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Continuations of a prompt, as `gpt3jax generate` writes them with the same seed."""
    generator = Generator(model.params, model.model, model.tokenizer)
    return generator.samples(
        prompt, samples, stop=stop, new_tokens=new_tokens, seed=seed,
        sampling=Sampling(temperature, top_k, top_p),
    )  # fmt: skip


def capture(
    model: LoadedModel, text: str, want: Sequence[str] = ("residual",), edit: Edit | None = None
) -> Output:
    """Logits [1, T, V] of a text and the activations named in `want` (inspect/capture.py)."""
    tokens_1T = jnp.array([model.tokenizer.encode(text) or [model.tokenizer.end_of_text]])
    return capture_tokens(model.params, tokens_1T, model.model, want=tuple(want), edit=edit)


def evaluate(
    model: LoadedModel,
    tasks: Sequence[str],
    *,
    shots: Sequence[int | Literal["few"]] = (0, 1, "few"),
    examples: int | None = None,
    beams: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Scores of tasks, one record per task and number of shots, as `gpt3jax evaluate --json`.

    Raises:
      ConfigError: a task or the protocol cannot be used.
    """
    protocol = Protocol(tuple(shots), seed=seed, beams=beams)
    words = partial(words_in, model.experiment.data, model.model.context, model.tokenizer)
    mesh = _one_device()
    with jax.set_mesh(mesh):
        scorer = Scorer(model.params, model.model, model.tokenizer, mesh)
        loaded = load_tasks(tasks, words=words, count=examples, seed=seed)
        settings = settings_of(scorer, loaded, protocol)
        return summarise(
            [evaluate_setting(scorer, each, protocol, lambda _: None) for each in settings]
        )


def _one_device() -> jax.sharding.Mesh:
    return make_mesh(Mesh(data=1), jax.devices()[:1])
