"""The look inside: a run writes a few tokens, and a page shows how.

What is loaded and computed here is recorded by the modules of inspect/, each for
its sections, and drawn by the page's own script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
"""Shown at most, the first state included."""
WINDOWS = 3
WINDOW_TOKENS = 24
ASKED = 8
"""Questions with demonstrations; the first is shown."""
MOST_TO_TRAIN = 500_000_000
"""Parameters of a model whose update is shown; a larger one's moments may not fit."""

MOST_IN_HASTE = 20_000_000
"""Parameters of a model for which to compile takes longer than to compute."""

Report = Callable[[str, float], None]
"""What is being done, and the share of it."""


@dataclasses.dataclass(frozen=True)
class Writing:
    """What is to be written, and how: as `gpt3jax generate` does."""

    prompt: str
    new_tokens: int
    sampling: Sampling
    seed: int


def look(
    path: Path, writing: Writing, *, layers: Sequence[int], task: str, mesh: Mesh, step: int | None
) -> dict[str, Any]:
    """All that the page about a run's model and one prompt shows.

    Args:
      path: the run.
      writing: the prompt, and how it is continued.
      layers: whose attention and additions are shown; empty: of all.
      task: what is asked with demonstrations, as `evaluate` names it.
      mesh: how the devices are used.
      step: the checkpoint; None: the newest.

    Raises:
      ConfigError: the run, layers or task cannot be used, or the text does not fit.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            "inspect is for one process, and there are several. Run it on one host, or use "
            "gpt3jax.inspect.capture, whose arrays stay where they are"
        )
    devices = make_mesh(mesh)
    with (
        jax.set_mesh(devices), _compiled_in_haste(path), progress() as report,
        ThreadPoolExecutor(1) as other,
    ):  # fmt: skip
        report("loading", 0.0)
        saved = load_model(path, step, devices)
        report("loading", 1.0)
        vocabulary = min(saved.model.vocabulary, saved.tokenizer.vocabulary)
        # One layer is compiled for all of them: here it takes longer than to compute.
        model = dataclasses.replace(saved.model, vocabulary=vocabulary, scan_layers=True)
        _check_layers(layers, model)
        asked = _task(task, saved)
        aside = partial(other.submit, _on_mesh, devices)
        parameters = aside(anatomy, model, saved.params)
        windows, why = _windows(saved.experiment)
        beginning = aside(_beginning, saved, windows)
        tokens, prompt_length = _written(saved, model, writing, report)
        record, targets = _of_text(saved, model, tokens, writing.sampling, layers, report)
        questions = Questions(tokens, targets, windows)
        training = aside(_training, saved, model, beginning.result(), questions, why, report)
        tell = partial(report, f"task {asked.name}")
        shots = shots_record(saved.params, model, saved.tokenizer, asked, writing.seed, tell)
        record |= {
            "prompt_length": prompt_length,
            "anatomy": parameters.result(),
            "shots": shots,
            "training": training.result(),
        }
    record |= {
        "name": saved.experiment.name, "step": saved.step, "model": shape_of(model),
        "gpt3": shape_of(GPT3), "sampling": dataclasses.asdict(writing.sampling),
        "seed": writing.seed,
    }  # fmt: skip
    record["title"] = f"{saved.experiment.name}, step {saved.step:,}: the look inside"
    return record | {"texts": texts(record, saved.tokenizer)}


def look_at_shape(experiment: Experiment) -> dict[str, Any]:
    """All that the page about a model without weights shows: where its parameters will be."""
    return {
        "title": f"{experiment.name}: {count_params(experiment.model):,} parameters",
        "name": experiment.name, "model": shape_of(experiment.model), "gpt3": shape_of(GPT3),
        "anatomy": anatomy(experiment.model), "texts": {},
    }  # fmt: skip


def write_page(record: dict[str, Any], out: Path) -> None:
    """Write the page of a record whole, or say why not; and print where it is."""
    text = page(record["title"], record)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror or error}. Name another"
        ) from error
    print(f"{out}: open it in a browser ({len(text.encode()) / 1e6:.1f} MB)")


@contextmanager
def _compiled_in_haste(path: Path) -> Iterator[None]:
    """On a CPU, XLA leaves out what makes small models faster than they need to be here."""
    small = count_params(open_run(path).experiment().model) <= MOST_IN_HASTE
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", small and platform() == "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _on_mesh(devices: jax.sharding.Mesh, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in another thread, which has no mesh in use."""
    with jax.set_mesh(devices):
        return work(*arguments)


def _written(
    saved: LoadedModel, model: Model, writing: Writing, report: Report
) -> tuple[np.ndarray, int]:
    """Token ids of the prompt and what follows, up to the end of the document; and of the prompt
    alone how many."""
    prompt = saved.tokenizer.encode(writing.prompt) or [saved.tokenizer.end_of_text]
    if len(prompt) + writing.new_tokens > model.context:
        raise ConfigError(
            f"the prompt has {len(prompt):,} tokens, and {writing.new_tokens:,} are to follow: "
            f"over {model.context:,}, the model sees no more at once. Shorten it, or lower "
            "--new-tokens"
        )
    generator = Generator(saved.params, saved.model, saved.tokenizer)
    drawn = generator.tokens(
        prompt, new_tokens=writing.new_tokens, sampling=writing.sampling, seed=writing.seed
    )
    tokens, what = list(prompt), f"writing {writing.new_tokens} tokens"
    report(what, 0.0)
    for written, (token,) in enumerate(drawn, 1):
        report(what, written / writing.new_tokens)
        tokens.append(int(token))
        if token == saved.tokenizer.end_of_text:
            break
    return np.array(tokens), len(prompt)


def _check_layers(layers: Sequence[int], model: Model) -> None:
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise ConfigError(
                f"--layers names {layer}: they are from 0 to {model.n_layers - 1}. Change it"
            )


def _of_text(
    saved: LoadedModel,
    model: Model,
    tokens: np.ndarray,
    sampling: Sampling,
    layers: Sequence[int],
    report: Report,
) -> tuple[dict[str, Any], np.ndarray]:
    """Sections 1 to 4: the text as the model read and wrote it; and what follows each token."""
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
    lens = track.lens_record(saved.params, output, targets, model, partial(report, "lens"))
    tell = partial(report, "attention")
    heads = heads_record(saved.params, output.activations, model, shown, tell)
    return record | {"lens": lens, "heads": heads}, targets


def _task(name: str, saved: LoadedModel) -> Task:
    words = partial(words_in, saved.experiment.data, saved.model.context, saved.tokenizer)
    tasks = load_tasks([name], words=words, count=ASKED, seed=0)
    if len(tasks) > 1:
        raise ConfigError(f"--task {name} is {len(tasks)} tasks: one is shown. Name one of them")
    return tasks[0]


def _training(
    saved: LoadedModel,
    model: Model,
    beginning: Beginning,
    questions: Questions,
    why: str,
    report: Report,
) -> dict[str, Any]:
    """Section 6: examples of the run's data, and the run's checkpoints."""
    states = _states(saved, beginning.first, partial(report, "checkpoints"))
    record = checkpoints_record(states, questions, model)
    if beginning.updated is not None:
        after = questions.ask(beginning.updated, model)
        S = questions.windows.shape[1] - 1
        shown = {name: each[1:2, :S] for name, each in after.items()}
        record["update"] = beginning.update | {"after": shown}
    return record | {"missing": why, "began": beginning.said}


def _windows(experiment: Experiment) -> tuple[np.ndarray | None, str]:
    """The beginnings of the first training windows; if the data is not there, why not."""
    context = experiment.model.context
    try:
        order = loader.windows(experiment.data, experiment.seed, context)
    except ConfigError as error:
        return None, str(error)
    length = min(WINDOW_TOKENS, context) + 1
    return np.stack([tokens_of(order[i])[:length] for i in range(WINDOWS)]), ""


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where a run began, and one step further."""

    said: str = ""
    """Whether the first parameters are untrained or whose they are."""
    first: Params | None = None
    """None for an imported run, or if its parent is gone or damaged."""
    updated: Params | None = None
    """After one example alone; None also for want of data, or of a small model."""
    update: dict[str, Any] = dataclasses.field(default_factory=dict)


def _beginning(saved: LoadedModel, windows: np.ndarray | None) -> Beginning:
    if 0 in Checkpointer(saved.run.checkpoints).steps():
        return Beginning()
    try:
        state = first_state(saved.run, saved.experiment, _mesh(saved))
    except (ConfigError, DamagedError):
        return Beginning()
    parent = parent_of(saved.run)
    said = f"step {parent.step:,} of {parent.path}" if parent else "untrained"
    if windows is None or count_params(saved.model) > MOST_TO_TRAIN:
        return Beginning(said, state.params)
    return Beginning(said, state.params, *_update(saved, state, windows[0]))


def _mesh(saved: LoadedModel) -> jax.sharding.Mesh:
    """What the parameters lie on."""
    return jax.tree.leaves(saved.params)[0].sharding.mesh


def _states(
    saved: LoadedModel, first: Params | None, tell: Callable[[float], None]
) -> Iterator[tuple[int, Params]]:
    """Steps up to the one that is looked at, evenly chosen, and their parameters."""
    tell(0.0)
    if first is not None:
        yield 0, first
    checkpoints = Checkpointer(saved.run.checkpoints)
    before = [step for step in checkpoints.steps() if step < saved.step]
    room = min(CHECKPOINTS - 2, len(before))
    chosen = np.linspace(0, len(before) - 1, room).round().astype(int) if room else []
    abstract = abstract_params(saved.model, _mesh(saved))
    for done, index in enumerate(chosen):
        tell((done + 1) / (room + 2))
        checkpoints.manifest(before[index])
        yield before[index], checkpoints.restore_params(before[index], abstract)
    yield saved.step, saved.params
    tell(1.0)


def _update(
    saved: LoadedModel, state: TrainState, window: np.ndarray
) -> tuple[Params, dict[str, Any]]:
    """One step of the run's optimizer on one example alone: the parameters, and how far they went.

    In the dtype that the page reads the model in; float8 has no products along `tensor`.
    """
    rate = saved.experiment.schedule.peak_learning_rate
    looped = dataclasses.replace(saved.model, scan_layers=True)
    looped = dataclasses.replace(saved.experiment, model=looped)

    @jax.jit
    def step(state, windows):
        after, _ = train_step(state, windows, jnp.int32(1), rate, experiment=looped)
        old, new = (
            flatten_dict(merge_lora(each.params, looped.model)[0], sep="/")
            for each in (state, after)
        )
        moved = [
            jnp.linalg.norm(new[name] - x) / jnp.linalg.norm(x)
            for name, x in old.items() if name.endswith("kernel")
        ]  # fmt: skip
        return after.params, jnp.stack(moved)

    mesh = jax.sharding.get_abstract_mesh()
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    copies = jnp.asarray(np.tile(window, (1, rows, 1)), jnp.int32)
    params, moved = step(state, copies)
    return params, {"learning_rate": rate, "moved": np.asarray(moved)}
