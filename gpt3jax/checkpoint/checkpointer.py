"""Checkpoints: the state and its position, saved in the background and verified on load.

    state -> hashes per leaf -> STEP.saving/ (Orbax) -> manifest.json -> STEP/ -> old ones go

The only module that touches Orbax; its v1 API is still marked experimental.
Values are stored as they are, uncompressed, a folder per leaf (Zarr 2): each byte
on disk is in some leaf's hash, and a damaged file names its leaf.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from gpt3jax.checkpoint.array_hash import array_hash_of_parts, array_hashes, as_hex, named_leaves
from gpt3jax.checkpoint.manifest import (
    MANIFEST_FILE,
    CheckpointManifest,
    DamagedError,
    Leaf,
    check_files,
    read_manifest,
)
from gpt3jax.checkpoint.partial_read import StoredParams, leaf_folder, open_params
from gpt3jax.config import Model
from gpt3jax.errors import RunError
from gpt3jax.model.init import Params
from gpt3jax.sharding import processes

STEP = re.compile("0|[1-9][0-9]*")
"""Names of folders that are checkpoints."""

# What it logs as an error, it raises, too.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Loaded = TypeVar("Loaded")
State = TypeVar("State")
"""A dataclass of pytrees of arrays: the parameters in `params`, and what training keeps of them."""
Tell = Callable[[int, str], None]
"""Told a step and what is wrong with its checkpoint."""


class SaveError(RunError):
    """A checkpoint could not be written; the ones before it are as they were."""


@dataclass(frozen=True)
class Position:
    """Where in the run a state is: Python integers, kept on the host."""

    step: int = 0
    sequences: int = 0
    """Windows consumed since the start."""


class Checkpointer:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Open for writing when told how many to keep, otherwise only for reading."""
        self.folder, self._keep = folder.absolute(), keep
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saving: Future[None] | None = None
        self.best: int | None = None
        """A step that is kept, too, however old."""
        self._inode = 0
        if keep is not None and processes.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._inode = self.folder.stat().st_ino
            self._clear("*.saving*")
            self._clear("*.pruned*")

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; whether it is whole is not looked at.

        Only a run that was imported has one of step 0.
        """
        named = (path for path in self.folder.glob("[0-9]*") if STEP.fullmatch(path.name))
        return sorted(int(path.name) for path in named if _is_checkpoint(path))

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / str(step)

    def manifest(self, step: int) -> CheckpointManifest:
        """What a checkpoint holds.

        Raises:
          DamagedError: its files are not those that the manifest lists.
        """
        found = read_manifest(self.path(step))
        check_files(self.path(step), found)
        return found

    def save(
        self,
        state: State,
        draft: CheckpointManifest,
        on_saved: Callable[[CheckpointManifest], None],
    ) -> None:
        """Start saving; returns once the state may be donated.

        Args:
          state: on the mesh.
          draft: position, identity and versions; leaves and files are filled in.
          on_saved: called with the manifest when all of it is on disk, in another thread.

        Raises:
          SaveError: it could not start, or the save before it failed.
        """
        self.wait()
        self._check_space(draft.step, state)
        hashes = array_hashes(_parts(state))
        is_copy = jax.default_backend() == "cpu"
        if is_copy:
            # Orbax would read the very buffers that the next step overwrites.
            state = _copied(state)
        unfinished = self.folder / f"{draft.step}.saving"

        def begin() -> Any:
            with _plain_files():
                return ocp.save_checkpointables_async(unfinished, _parts(state), overwrite=True)

        writing = None
        # A copy has time: Orbax prepares for longer than a small step takes. But several processes
        # wait for each other when they begin, so each does it between the same two steps.
        if not is_copy or jax.process_count() > 1:
            with _saving(draft.step):
                writing = begin()

        def commit() -> None:
            with _saving(draft.step):
                try:
                    (writing or begin()).result()
                    if processes.is_first():
                        leaves = _leaves(_parts(state), hashes)
                        manifest = dataclasses.replace(draft, leaves=leaves)
                        manifest.write(unfinished)
                        self._name(unfinished, manifest.step)
                        on_saved(manifest)
                        self._prune()
                except Exception:
                    self._clear(f"{draft.step}.saving*")
                    raise

        self._saving = self._saver.submit(commit)

    def has_failed(self) -> bool:
        """Whether the save under way has come to a bad end; `wait` raises why."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
          SaveError: it failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def newest(self, load: Callable[[int], Loaded], tell: Tell) -> Loaded | None:
        """What `load` makes of the newest checkpoint that is whole; None if there is none at all.

        Args:
          load: raises DamagedError if the checkpoint of a step is not what was saved.
          tell: of each that had to be passed over.

        Raises:
          DamagedError: there are checkpoints, but none is whole.
        """
        steps, reasons = processes.exchange(self.steps())[0], []
        for step in reversed(steps):
            # In two parts, since restoring waits for all hosts: each must know to begin.
            _, error = _tried(lambda step=step: processes.is_first() and self.manifest(step))
            if error is None:
                loaded, error = _tried(lambda step=step: load(step))
            if error is None:
                return loaded
            tell(step, error)
            reasons.append(f"{step}: {error}")
        if steps:
            raise DamagedError(
                f"no checkpoint of {self.folder} can be trusted ({reasons[0]}): the run does not "
                "start over by itself. Restore one, or start anew with another --run"
            )
        return None

    def restore(self, step: int, abstract: State) -> State:
        """The state of a step, laid out as `abstract` says, whatever mesh it was saved on.

        Its values are compared with the manifest, its files are not: see `manifest`.

        Raises:
          DamagedError: it is not, bit for bit, what was saved.
        """
        return dataclasses.replace(abstract, **self._restore(step, _parts(abstract)))

    def restore_params(self, step: int, abstract: Params) -> Params:
        """The parameters alone; else as `restore`."""
        return self._restore(step, {"params": abstract})["params"]

    def open_params(self, step: int, model: Model) -> StoredParams:
        """The parameters of a step, to be read part by part; as saved on any mesh.

        All of them are read once, to compare them with the manifest.

        Raises:
          DamagedError: they are not, bit for bit, what was saved.
        """
        found = self.manifest(step)
        params = open_params(self.path(step), found, model)
        for leaf in params.leaves.values():
            if as_hex(array_hash_of_parts(leaf.parts())) != found.leaves[leaf.name].hash:
                raise DamagedError(f"leaf {leaf.name} has other values than when it was saved")
        return params

    def set_aside(self, step: int, why: str) -> Path:
        """Rename a step's folder to STEP.WHY, so that it is no checkpoint any more."""
        aside, count = self.folder / f"{step}.{why}", 1
        while aside.exists():
            count += 1
            aside = self.folder / f"{step}.{why}-{count}"
        os.rename(self.path(step), aside)
        return aside

    def close(self) -> None:
        """No more saves; alone, wait for the one under way. Of several hosts, one may be gone."""
        self._saver.shutdown(wait=jax.process_count() == 1)
        if self._keep is not None and jax.process_count() == 1:
            # Threads of a failed save may still have been writing when it was cleared.
            self._clear("*.saving*")

    def _restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        expected = read_manifest(self.path(step)).leaves
        wanted = named_leaves(abstract)
        for name, leaf in wanted.items():
            if name not in expected or expected[name].shape != leaf.shape:
                found = expected[name].shape if name in expected else "missing"
                raise DamagedError(f"leaf {name} is {found}, the model's is {leaf.shape}")
        try:
            parts = ocp.load_checkpointables(self.path(step), abstract)
        except Exception as error:  # Of many kinds, from Orbax and TensorStore.
            text = " ".join(map(str, _chain(error)))
            names = [f"leaf {name}" for name in wanted if f"{leaf_folder(name)}/" in text]
            raise DamagedError(
                f"{(names or ['it'])[0]} cannot be read ({' '.join(text.split())[:80]})"
            ) from error
        for name, found in array_hashes(parts).items():
            if as_hex(found) != expected[name].hash:
                raise DamagedError(f"leaf {name} has other values than when it was saved")
        return parts

    def _check_space(self, step: int, state: State) -> None:
        """A disk that is too small is told before a byte is written."""
        if not processes.is_first():
            return
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with _saving(step):
            self._check_is_there()
            free = shutil.disk_usage(self.folder).free
        if free < need:
            raise SaveError(
                f"checkpoint {step} needs {need / 1e9:.3g} GB, but {self.folder} has "
                f"{free / 1e9:.3g} GB free. Free some; older checkpoints are whole"
            )

    def _check_is_there(self) -> None:
        """Refuse to make a folder again that somebody has removed or unmounted."""
        if self.folder.stat().st_ino != self._inode:
            raise FileNotFoundError(errno.ENOENT, f"{self.folder} is another folder than before")

    def _clear(self, pattern: str) -> None:
        with suppress(OSError):
            for rest in self.folder.glob(pattern):
                shutil.rmtree(rest, ignore_errors=True)

    def _name(self, unfinished: Path, step: int) -> None:
        """The moment from which the checkpoint is there."""
        self._check_is_there()
        if self.path(step).exists():
            self.set_aside(step, "stray")
        os.rename(unfinished, self.path(step))
        _sync(self.folder)

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep]:
            if step != self.best:
                # Renamed first: a kill between two files leaves no half of a checkpoint.
                shutil.rmtree(self.set_aside(step, "pruned"), ignore_errors=True)


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def _tried(work: Callable[[], Loaded]) -> tuple[Loaded | None, str | None]:
    """What the work gives, or what damage any host found; the same on all hosts."""
    result, error = None, None
    try:
        result = work()
    except DamagedError as damaged:
        error = str(damaged)
    return result, next(filter(None, processes.exchange(error)), None)


@contextmanager
def _saving(step: int) -> Iterator[None]:
    """Whatever goes wrong inside is a SaveError that names the step."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        raise SaveError(_failed(step, error)) from error


def _failed(step: int, error: Exception) -> str:
    return (
        f"checkpoint {step} could not be written: {_reason(error)}. "
        "Older ones are whole; mend the disk and relaunch"
    )


def _reason(error: Exception) -> str:
    """What the system said, also where TensorStore has it in the middle of a page."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        if code := re.search(r"os_error_code='(\d+)'", str(each)):
            return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def _plain_files() -> ocp.Context:
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_zarr3 = False
    context.array.saving.use_compression = False
    return context


def _parts(state: State) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def leaves_of(state: State) -> dict[str, Leaf]:
    """The leaves of a state, as a manifest has them."""
    return _leaves(_parts(state), array_hashes(_parts(state)))


def _leaves(parts: dict[str, Any], hashes: dict[str, jax.Array]) -> dict[str, Leaf]:
    return {
        name: Leaf(leaf.shape, str(leaf.dtype), as_hex(hashes[name]))
        for name, leaf in named_leaves(parts).items()
    }


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_checkpoint(folder: Path) -> bool:
    """Whether a save has been here: what a person has put there does not count."""
    return any((folder / name).exists() for name in (MANIFEST_FILE, "_CHECKPOINT_METADATA"))


def _sync(folder: Path) -> None:
    """Make a rename in the folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
