"""`gpt3jax inspect`: load a run, generate text, and record what the page shows.

The modules of inspect/ compute the records of the sections; the page's script renders them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.load import LoadedModel, load_model
from gpt3jax.checkpoint.manifest import DamagedError
from gpt3jax.config import Experiment, Mesh, Model
from gpt3jax.data import loader
from gpt3jax.data.pairs import tokens_of
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Task
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.evals.tasks.words import words_in
from gpt3jax.inspect import track
from gpt3jax.inspect.anatomy import GPT3, anatomy, shape_of
from gpt3jax.inspect.capture import capture
from gpt3jax.inspect.heads import heads_record
from gpt3jax.inspect.lens import lens_record
from gpt3jax.inspect.page import page, texts
from gpt3jax.inspect.shots import shots_record
from gpt3jax.inspect.training import Questions, checkpoints_record
from gpt3jax.model.init import Params, abstract_params
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.param_specs import count_params
from gpt3jax.run_dir import open_run, write_atomic
from gpt3jax.runtime.progress import progress
from gpt3jax.sharding.collectives import platform
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.init_from import first_state, parent_of
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import train_step

CHECKPOINTS = 10
"""Maximum number of checkpoints shown, including the initial state."""
WINDOWS = 3
WINDOW_TOKENS = 24
EXAMPLES = 8
"""Examples of the task; the first one is shown."""
MOST_TO_TRAIN = 500_000_000
"""Maximum parameters of a model whose update is shown; the moments of larger ones may not fit."""

MOST_FAST_COMPILE = 20_000_000
"""Maximum parameters of a model for which compilation takes longer than computation."""

Report = Callable[[str, float], None]
"""Called with the name of a task and the fraction done."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The prompt and the settings of `gpt3jax generate`."""

    prompt: str
    new_tokens: int
    sampling: Sampling
    seed: int


def inspect_run(
    path: Path,
    settings: GenerationSettings,
    *,
    layers: Sequence[int],
    task: str,
    mesh: Mesh,
    step: int | None,
) -> dict[str, Any]:
    """The record of the page of a run's model and one prompt.

    Args:
      path: the run.
      settings: the prompt and the sampling settings.
      layers: layers whose attention and residual updates are shown; empty: all.
      task: task for the few-shot section, as for `evaluate`.
      mesh: devices along each axis.
      step: step of the checkpoint; None: the newest.

    Raises:
      ConfigError: the run, layers or task are invalid, or the text does not fit the context.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            "inspect does not support several processes. Run it on one host, or use inspect.capture"
        )
    devices = make_mesh(mesh)
    with (
        jax.set_mesh(devices),
        _fast_compilation(path),
        progress() as report,
        # The mesh is a setting of each thread.
        ThreadPoolExecutor(1, initializer=jax.set_mesh, initargs=(devices,)) as background,
    ):
        report("loading", 0.0)
        saved = load_model(path, step, devices)
        report("loading", 1.0)
        vocabulary = min(saved.model.vocabulary, saved.tokenizer.vocabulary)
        # Scanned layers compile once; here compilation takes longer than computation.
        model = dataclasses.replace(saved.model, vocabulary=vocabulary, scan_layers=True)
        _check_layers(layers, model)
        chosen_task = _task(task, saved)
        parameters = background.submit(anatomy, model, saved.params)
        windows, missing = _windows(saved.experiment)
        initial = background.submit(_initial_state, saved, windows)
        tokens, prompt_length = _generate(saved, model, settings, report)
        record, targets = _text_record(saved, model, tokens, settings.sampling, layers, report)
        questions = Questions(tokens, targets, windows)
        training = background.submit(
            _training, saved, model, initial.result(), questions, missing, report
        )
        record["shots"] = shots_record(
            saved.params, model, saved.tokenizer, chosen_task, settings.seed,
            partial(report, f"task {chosen_task.name}"),
        )  # fmt: skip
        record["prompt_length"] = prompt_length
        record["anatomy"] = parameters.result()
        record["training"] = training.result()
    record |= {
        "name": saved.experiment.name,
        "step": saved.step,
        "model": shape_of(model),
        "gpt3": shape_of(GPT3),
        "sampling": dataclasses.asdict(settings.sampling),
        "seed": settings.seed,
        "title": f"{saved.experiment.name}, step {saved.step:,}: activations and parameters",
    }
    return record | {"texts": texts(record, saved.tokenizer)}


def inspect_shape(experiment: Experiment) -> dict[str, Any]:
    """The record of the page of a model without weights, which shows its parameter shapes."""
    return {
        "title": f"{experiment.name}: {count_params(experiment.model):,} parameters",
        "name": experiment.name,
        "model": shape_of(experiment.model),
        "gpt3": shape_of(GPT3),
        "anatomy": anatomy(experiment.model),
        "texts": {},
    }


def write_page(record: dict[str, Any], out: Path) -> int:
    """Write the page of a record atomically; returns its size in bytes.

    Raises:
      ConfigError: the file cannot be written.
    """
    text = page(record["title"], record)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror or error}. Name another"
        ) from error
    return len(text.encode())


@contextmanager
def _fast_compilation(path: Path) -> Iterator[None]:
    """Disable most of XLA's optimizations for small models on CPUs, where they do not pay off."""
    small = count_params(open_run(path).experiment().model) <= MOST_FAST_COMPILE
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", small and platform() == "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _generate(
    saved: LoadedModel, model: Model, settings: GenerationSettings, report: Report
) -> tuple[np.ndarray, int]:
    """Token ids of the prompt and the generated text, and the length of the prompt."""
    prompt = saved.tokenizer.encode(settings.prompt) or [saved.tokenizer.end_of_text]
    if len(prompt) + settings.new_tokens > model.context:
        raise ConfigError(
            f"the prompt has {len(prompt):,} tokens, and {settings.new_tokens:,} are to follow: "
            f"the context is {model.context:,}. Shorten the prompt, or lower --new-tokens"
        )
    generator = Generator(saved.params, saved.model, saved.tokenizer)
    samples = generator.tokens(
        prompt,
        new_tokens=settings.new_tokens,
        sampling=settings.sampling,
        seed=settings.seed,
        end=saved.tokenizer.end_of_text,
    )
    tokens, what = list(prompt), f"generating {settings.new_tokens} tokens"
    report(what, 0.0)
    for count, (token,) in enumerate(samples, 1):
        report(what, count / settings.new_tokens)
        tokens.append(int(token))
    return np.array(tokens), len(prompt)


def _check_layers(layers: Sequence[int], model: Model) -> None:
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise ConfigError(
                f"--layers has {layer}: it must be from 0 to {model.n_layers - 1}. Change it"
            )


def _text_record(
    saved: LoadedModel,
    model: Model,
    tokens: np.ndarray,
    sampling: Sampling,
    layers: Sequence[int],
    report: Report,
) -> tuple[dict[str, Any], np.ndarray]:
    """The record of sections 1 to 4, on the text, and the next token at each position."""
    shown = sorted(set(layers)) or list(range(model.n_layers))
    want = (*track.WANTED, "queries", "keys")
    report("activations", 0.0)
    output = capture(saved.params, jnp.asarray(tokens, jnp.int32)[None], model, want)
    last = int(np.argmax(np.asarray(output.logits[0, -1])))
    targets = np.append(tokens[1:], last)
    record = {
        "tokens": tokens.astype(np.uint32),
        "layers": shown,
        "vectors": track.vectors(saved.params, output, tokens, shown),
        "predictions": track.predictions(saved.params, output, targets, model, sampling),
    }
    report("activations", 1.0)
    lens = lens_record(saved.params, output, targets, model, partial(report, "lens"))
    on_progress = partial(report, "attention")
    heads = heads_record(saved.params, output.activations, model, shown, on_progress)
    return record | {"lens": lens, "heads": heads}, targets


def _task(name: str, saved: LoadedModel) -> Task:
    words = partial(words_in, saved.experiment.data, saved.model.context, saved.tokenizer)
    tasks = load_tasks([name], words=words, count=EXAMPLES, seed=0)
    if len(tasks) > 1:
        raise ConfigError(f"--task {name} is {len(tasks)} tasks: only one is shown. Give one")
    return tasks[0]


def _training(
    saved: LoadedModel,
    model: Model,
    initial: InitialState,
    questions: Questions,
    missing: str,
    report: Report,
) -> dict[str, Any]:
    """The record of section 6: predictions of the run's checkpoints on its training data."""
    states = _states(saved, initial.params, partial(report, "checkpoints"))
    record = checkpoints_record(states, questions, model)
    if initial.updated is not None and questions.windows is not None:
        after = questions.ask(initial.updated, model)
        S = questions.windows.shape[1] - 1
        shown = {name: each[1:2, :S] for name, each in after.items()}
        record["update"] = initial.update | {"after": shown}
    return record | {"missing": missing, "began": initial.description}


def _windows(experiment: Experiment) -> tuple[np.ndarray | None, str]:
    """The first tokens of the first training windows, or None and the reason they are missing."""
    context = experiment.model.context
    try:
        order = loader.windows(experiment.data, experiment.seed, context)
    except ConfigError as error:
        return None, str(error)
    length = min(WINDOW_TOKENS, context) + 1
    return np.stack([tokens_of(order[i])[:length] for i in range(WINDOWS)]), ""


@dataclasses.dataclass(frozen=True)
class InitialState:
    """The initial parameters of a run, and those after one update."""

    description: str = ""
    """Origin of the initial parameters: untrained, or a checkpoint of the parent run."""
    params: Params | None = None
    """None for an imported run, or if its parent is missing or damaged."""
    updated: Params | None = None
    """Parameters after one step on one window; also None without data or for large models."""
    update: dict[str, Any] = dataclasses.field(default_factory=dict)


def _initial_state(saved: LoadedModel, windows: np.ndarray | None) -> InitialState:
    if 0 in Checkpointer(saved.run.checkpoints).steps():
        return InitialState()
    try:
        state, _ = first_state(saved.run, saved.experiment, _mesh(saved))
    except (ConfigError, DamagedError):
        return InitialState()
    parent = parent_of(saved.run)
    description = f"step {parent.step:,} of {parent.path}" if parent else "untrained"
    if windows is None or count_params(saved.model) > MOST_TO_TRAIN:
        return InitialState(description, state.params)
    return InitialState(description, state.params, *_update(saved, state, windows[0]))


def _mesh(saved: LoadedModel) -> jax.sharding.Mesh:
    return jax.tree.leaves(saved.params)[0].sharding.mesh


def _states(
    saved: LoadedModel, first: Params | None, on_progress: Callable[[float], None]
) -> Iterator[tuple[int, Params]]:
    """Evenly spaced checkpoints up to the inspected one: steps and parameters."""
    on_progress(0.0)
    if first is not None:
        yield 0, first
    checkpoints = Checkpointer(saved.run.checkpoints)
    before = [step for step in checkpoints.steps() if step < saved.step]
    room = min(CHECKPOINTS - 2, len(before))
    chosen = np.linspace(0, len(before) - 1, room).round().astype(int) if room else []
    abstract = abstract_params(saved.model, _mesh(saved))
    for done, index in enumerate(chosen):
        on_progress((done + 1) / (room + 2))
        checkpoints.manifest(before[index])
        yield before[index], checkpoints.restore_params(before[index], abstract)
    yield saved.step, saved.params
    on_progress(1.0)


def _update(
    saved: LoadedModel, state: TrainState, window: np.ndarray
) -> tuple[Params, dict[str, Any]]:
    """One optimizer step on one window: the parameters, and the relative change of each matrix.

    The dtype is that of the loaded model, because float8 does not support the axis `tensor`.
    """
    rate = saved.experiment.schedule.peak_learning_rate
    model = dataclasses.replace(saved.model, scan_layers=True)
    experiment = dataclasses.replace(saved.experiment, model=model)

    def flat(params: Params) -> dict[str, jax.Array]:
        return cast(dict[str, jax.Array], flatten_dict(merge_lora(params, model)[0], sep="/"))

    @jax.jit
    def step(state, windows):
        after, _ = train_step(
            state, windows, jnp.int32(1), jnp.float32(rate), experiment=experiment
        )
        old, new = flat(state.params), flat(after.params)
        moved = [
            jnp.linalg.norm(new[name] - x) / jnp.linalg.norm(x)
            for name, x in old.items()
            if name.endswith("kernel")
        ]
        return after.params, jnp.stack(moved)

    mesh = jax.sharding.get_abstract_mesh()
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    copies = jnp.asarray(np.tile(window, (1, rows, 1)), jnp.int32)
    params, moved = step(state, copies)
    return params, {"learning_rate": rate, "moved": np.asarray(moved)}
