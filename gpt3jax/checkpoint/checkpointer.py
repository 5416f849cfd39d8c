"""Checkpoints of the train state, saved in the background and verified on load.

    state -> hash per leaf -> STEP.saving/ (Orbax) -> manifest.json -> STEP/ -> prune old ones

This is the only module that uses Orbax, whose v1 API is still marked experimental. Arrays are
stored uncompressed, with a folder per leaf (Zarr 2): the hash of a leaf covers every byte of its
files, and the path of a damaged file names its leaf.
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
from typing import TYPE_CHECKING, Any, TypeVar

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

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STEP = re.compile("0|[1-9][0-9]*")
"""Names of checkpoint folders."""

# Orbax also raises what it logs as an error.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Loaded = TypeVar("Loaded")
State = TypeVar("State", bound="DataclassInstance")
"""A dataclass of pytrees of arrays, with the parameters in `params`."""
Tell = Callable[[int, str], None]
"""Called with a step and the reason why its checkpoint was skipped."""


class SaveError(RunError):
    """A checkpoint could not be written; earlier checkpoints are intact."""


@dataclass(frozen=True)
class Position:
    """Position of a state in the run, as Python integers on the host."""

    step: int = 0
    sequences: int = 0
    """Windows consumed since the start."""


class Checkpointer:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Open for reading, or for writing if `keep`, the number of checkpoints to keep, is set."""
        self.folder, self._keep = folder.absolute(), keep
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saving: Future[None] | None = None
        self.best: int | None = None
        """A step that is never pruned."""
        self._inode = 0
        if keep is not None and processes.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._inode = self.folder.stat().st_ino
            self._clear("*.saving*")
            self._clear("*.pruned*")

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; does not verify them.

        Only an imported run has a checkpoint of step 0.
        """
        named = (path for path in self.folder.glob("[0-9]*") if STEP.fullmatch(path.name))
        return sorted(int(path.name) for path in named if _is_checkpoint(path))

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / str(step)

    def manifest(self, step: int) -> CheckpointManifest:
        """The manifest of a checkpoint, after comparing the files with it.

        Raises:
          DamagedError: the files differ from the manifest.
        """
        manifest = read_manifest(self.path(step))
        check_files(self.path(step), manifest)
        return manifest

    def save(
        self,
        state: DataclassInstance,
        draft: CheckpointManifest,
        on_saved: Callable[[CheckpointManifest], None],
    ) -> None:
        """Start an asynchronous save; returns when the state may be donated.

        Args:
          state: the state on the mesh.
          draft: a manifest with position, identity and versions; leaves and files are filled in.
          on_saved: called with the manifest, in another thread, when the checkpoint is complete.

        Raises:
          SaveError: the save could not start, or the previous save failed.
        """
        self.wait()
        self._check_space(draft.step, state)
        hashes = array_hashes(_parts(state))
        is_copy = jax.default_backend() == "cpu"
        if is_copy:
            # On CPUs Orbax reads the device buffers in place, and the next step overwrites them.
            state = _copied(state)
        unfinished = self.folder / f"{draft.step}.saving"

        def begin() -> Any:
            with _plain_files():
                path = str(unfinished)
                return ocp.save_checkpointables_async(path, _parts(state), overwrite=True)

        writing = None
        # Starting takes Orbax longer than a small step, so a copy is saved in the background.
        # Several processes synchronise at the start of a save, so all start it at the same step.
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
        """Whether the current save has failed; `wait` raises the error."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def wait(self) -> None:
        """Block until the current save, if any, is on disk.

        Raises:
          SaveError: the save failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def newest(self, load: Callable[[int], Loaded], tell: Tell) -> Loaded | None:
        """The result of `load` for the newest intact checkpoint; None if there are no checkpoints.

        Args:
          load: loads the checkpoint of a step, or raises DamagedError.
          tell: called for each damaged checkpoint that is skipped.

        Raises:
          DamagedError: there are checkpoints, but none is intact.
        """
        steps, reasons = processes.exchange(self.steps())[0], []
        for step in reversed(steps):
            # Two stages, since restoring is collective: all hosts must start it or none.
            _, error = _tried(lambda step=step: processes.is_first() and self.manifest(step))
            loaded = None
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
        """The state of a step with the shardings of `abstract`, whatever mesh it was saved on.

        Verifies the array hashes, but not the files; see `manifest`.

        Raises:
          DamagedError: the state is not bit-identical to what was saved.
        """
        return dataclasses.replace(abstract, **self._restore(step, _parts(abstract)))

    def restore_params(self, step: int, abstract: Params) -> Params:
        """Like `restore`, for the parameters only."""
        return self._restore(step, {"params": abstract})["params"]

    def open_params(self, step: int, model: Model) -> StoredParams:
        """The parameters of a step, to be read in parts; saved on any mesh.

        Reads all of them once to verify the array hashes.

        Raises:
          DamagedError: the parameters are not bit-identical to what was saved.
        """
        manifest = self.manifest(step)
        params = open_params(self.path(step), manifest, model)
        for leaf in params.leaves.values():
            if as_hex(array_hash_of_parts(leaf.parts())) != manifest.leaves[leaf.name].hash:
                raise DamagedError(f"leaf {leaf.name} has other values than when it was saved")
        return params

    def set_aside(self, step: int, why: str) -> Path:
        """Rename the folder of a step to STEP.WHY, so that it no longer counts as a checkpoint."""
        aside, count = self.folder / f"{step}.{why}", 1
        while aside.exists():
            count += 1
            aside = self.folder / f"{step}.{why}-{count}"
        os.rename(self.path(step), aside)
        return aside

    def close(self) -> None:
        """Allow no more saves. Waits for the current one in a single process only, since with
        several hosts one of them may have died."""
        self._saver.shutdown(wait=jax.process_count() == 1)
        if self._keep is not None and jax.process_count() == 1:
            # Threads of a failed save may have continued to write after it was cleared.
            self._clear("*.saving*")

    def _restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        expected = read_manifest(self.path(step)).leaves
        wanted = named_leaves(abstract)
        for name, leaf in wanted.items():
            if name not in expected or expected[name].shape != leaf.shape:
                saved = expected[name].shape if name in expected else "missing"
                raise DamagedError(f"leaf {name} is {saved}, the model's is {leaf.shape}")
        try:
            parts = ocp.load_checkpointables(str(self.path(step)), abstract)
        except Exception as error:  # Orbax and TensorStore raise many types.
            text = " ".join(map(str, _chain(error)))
            names = [f"leaf {name}" for name in wanted if f"{leaf_folder(name)}/" in text]
            raise DamagedError(
                f"{(names or ['it'])[0]} cannot be read ({' '.join(text.split())[:80]})"
            ) from error
        for name, hash_ in array_hashes(parts).items():
            if as_hex(hash_) != expected[name].hash:
                raise DamagedError(f"leaf {name} has other values than when it was saved")
        return parts

    def _check_space(self, step: int, state: DataclassInstance) -> None:
        """Raise SaveError before anything is written if the disk has too little free space."""
        if not processes.is_first():
            return
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with _saving(step):
            self._check_same_folder()
            free = shutil.disk_usage(self.folder).free
        if free < need:
            raise SaveError(
                f"checkpoint {step} needs {need / 1e9:.3g} GB, but {self.folder} has "
                f"{free / 1e9:.3g} GB free. Free some space; older checkpoints are intact"
            )

    def _check_same_folder(self) -> None:
        """Raise an error if the folder has been removed or unmounted since it was opened."""
        if self.folder.stat().st_ino != self._inode:
            raise FileNotFoundError(errno.ENOENT, f"{self.folder} is another folder than before")

    def _clear(self, pattern: str) -> None:
        with suppress(OSError):
            for rest in self.folder.glob(pattern):
                shutil.rmtree(rest, ignore_errors=True)

    def _name(self, unfinished: Path, step: int) -> None:
        """Commit a checkpoint by an atomic rename."""
        self._check_same_folder()
        if self.path(step).exists():
            self.set_aside(step, "stray")
        os.rename(unfinished, self.path(step))
        _sync(self.folder)

    def _prune(self) -> None:
        assert self._keep is not None
        for step in self.steps()[: -self._keep]:
            if step != self.best:
                # Renamed first, so that a kill during deletion leaves no partial checkpoint.
                shutil.rmtree(self.set_aside(step, "pruned"), ignore_errors=True)


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def _tried(work: Callable[[], Loaded]) -> tuple[Loaded | None, str | None]:
    """The result of the work, and the DamagedError of any host; all hosts get the same error."""
    result, error = None, None
    try:
        result = work()
    except DamagedError as damaged:
        error = str(damaged)
    return result, next(filter(None, processes.exchange(error)), None)


@contextmanager
def _saving(step: int) -> Iterator[None]:
    """Convert every error to a SaveError that names the step."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        raise SaveError(
            f"checkpoint {step} could not be written: {_reason(error)}. "
            "Older ones are intact; repair the disk and relaunch"
        ) from error


def _reason(error: Exception) -> str:
    """The system's error message, which TensorStore buries in a long text."""
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
    # Within one host it would only add a program to compile for each slice.
    context.array.saving.use_replica_parallel = jax.process_count() > 1
    return context


def _parts(state: DataclassInstance) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def leaves_of(state: DataclassInstance) -> dict[str, Leaf]:
    """The manifest entries of the leaves of a state."""
    return _leaves(_parts(state), array_hashes(_parts(state)))


def _leaves(parts: dict[str, Any], hashes: dict[str, jax.Array]) -> dict[str, Leaf]:
    return {
        name: Leaf(leaf.shape, str(leaf.dtype), as_hex(hashes[name]))
        for name, leaf in named_leaves(parts).items()
    }


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by `save`, rather than placed there by a person."""
    return any((folder / name).exists() for name in (MANIFEST_FILE, "_CHECKPOINT_METADATA"))


def _sync(folder: Path) -> None:
    """Flush a rename in the folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
