"""Eight fake CPU devices, a tiny model, and a small prepared data set."""

import dataclasses
import fnmatch
import os
from pathlib import Path

from compiler_flags import FAST

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {FAST}"
# And the same programs again and again, in many processes: the large ones are compiled once, for
# good; small ones take longer to write and read than to compile.
CACHE = Path(__file__).parents[1] / ".cache/jax"
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

import random  # noqa: E402
from unittest import mock  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from building import changed, randomised  # noqa: E402

from gpt3jax.config import (  # noqa: E402
    Data,
    Evaluate,
    Experiment,
    Mesh,
    Model,
    Schedule,
    Source,
    Train,
)
from gpt3jax.data.prepare.prepare import prepare  # noqa: E402
from gpt3jax.runtime.compilation_cache import prune  # noqa: E402

CACHE.mkdir(parents=True, exist_ok=True)
prune(CACHE)  # Tests kill processes.


@pytest.fixture
def one_device():
    """`train` sees one device, as on a laptop; apart from what a test patches and undoes."""
    only = jax.devices()[:1]
    with mock.patch.object(jax, "devices", lambda *_: only):
        yield


@pytest.fixture
def model():
    """Four layers, dense and banded in turn; the vocabulary needs padding."""
    return Model(
        n_layers=4, d_model=32, n_heads=4, d_head=8, vocabulary=300, context=48, band=12,
        scan_layers=False,
    )  # fmt: skip


@pytest.fixture
def params(model):
    return randomised(model)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of generated text files with learnable regularities."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [
        "the",
        "cat",
        "dog",
        "sat",
        "on",
        "mat",
        "and",
        "ran",
        "to",
        "see",
        "red",
        "sky",
        "sun",
    ]
    draw = random.Random(0)
    for number in range(60):
        lines = [" ".join(draw.choices(words, k=8)) + "." for _ in range(60)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def prepared(corpus, tmp_path_factory):
    """The corpus prepared for a context of 48 and a vocabulary of 300."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(corpus), str(out), context=48, vocabulary=300, validation_fraction=0.1, workers=1)
    return out


@pytest.fixture
def experiment(model, prepared):
    """A run of 12 steps of two layers on one device."""
    return Experiment(
        name="test",
        model=dataclasses.replace(model, n_layers=2),
        data=Data(sources=(Source("words", str(prepared)),)),
        schedule=Schedule(peak_learning_rate=1e-2, warmup_tokens=2000, decay_tokens=100_000),
        train=Train(batch_tokens=8 * 48, steps=12, log_every=1, save_every=100),
        mesh=Mesh(data=1),
        evaluate=Evaluate(every=100, windows=16, sample_tokens=0),
    )


@pytest.fixture
def short(experiment):
    """Eight steps, each second one saved and all saves kept; no samples."""
    train = {"steps": 8, "save_every": 2, "keep": 9}
    return changed(experiment, train=train)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark the cases of a test as long that `in_ci` does not name, before -m selects."""
    marked, kept = set(), set()
    for item in items:
        if named := item.get_closest_marker("in_ci"):
            marked.add(item.function)
            if any(fnmatch.fnmatchcase(item.callspec.id, each) for each in named.args):
                kept.add(item.function)
            else:
                item.add_marker(pytest.mark.long)
    if marked - kept and not any("::" in each for each in config.args):
        names = ", ".join(sorted(each.__name__ for each in marked - kept))
        raise pytest.UsageError(f"in_ci names no case of {names}")
