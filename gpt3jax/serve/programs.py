"""The server's compiled programs, compiled ahead of time for fixed sizes.

The programs of a first answer are compiled at the start, the others in the background. Each is
compiled once, by the first thread that needs it; other threads wait for the result.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from gpt3jax.decoding import batched, decode
from gpt3jax.decoding.generator import Generator, padded_size
from gpt3jax.model.gpt3 import Cache

Key = tuple[str | int, ...]
"""The name of a program and the sizes that it is compiled for:

    prefill size          score size          draw
    step rows room        place rows room room-of-one-row
    resize rows room new-rows new-room
"""


class Programs:
    """Compiled programs of one model.

    Args:
      generator: the model.
      most_rows: maximum rows of a step; a power of two.
    """

    def __init__(self, generator: Generator, most_rows: int) -> None:
        self._params, self._model = generator.params, generator.model
        model = self._model
        self.rooms = sorted({padded_size(model.context // 4, model), model.context})
        """Cache slots per row that programs are compiled for, ascending."""
        self._most_rows = most_rows
        options = decode.CPU_OPTIONS if jax.default_backend() == "cpu" else None
        vocabulary = generator.vocabulary
        self._jitted: dict[str, Any] = {
            "prefill": jax.jit(partial(decode.prefill, model=model), static_argnames="slots"),
            "draw": jax.jit(partial(batched.draw_each, vocabulary=vocabulary)),
            "step": jax.jit(partial(batched.step, model=model, vocabulary=vocabulary),
                            donate_argnames="cache", compiler_options=options),
            "place": jax.jit(batched.place_row, donate_argnums=0),
            "resize": jax.jit(batched.resized, static_argnames="slots"),
            "score": jax.jit(partial(batched.score, model=model)),
        }  # fmt: skip
        self._programs: dict[Key, Future[Callable[..., Any]]] = {}
        self._lock, self._is_closing = threading.Lock(), False
        self._wanted: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._queued: set[Key] = set()
        self._planned = list(dict.fromkeys(key for _, keys in self._stages() for key in keys))
        self._thread: threading.Thread | None = None

    @property
    def total(self) -> int:
        """Number of programs, without those that score an echoed prompt."""
        return len(self._planned)

    @property
    def compiled(self) -> int:
        """Number of these programs that are ready."""
        return sum(self.are_ready([key]) for key in self._planned)

    def start(self, say: Callable[[str], None]) -> None:
        """Compile the programs of a first answer; the others follow in a thread."""
        began, (first, *others) = time.perf_counter(), self._stages()
        self._compile_stage(*first, say)

        def rest() -> None:
            for stage in others:
                self._compile_stage(*stage, say)
            if not self._is_closing:
                seconds = time.perf_counter() - began
                say(f"compiled {self.compiled} of {self.total} programs in {seconds:.0f} s")
            while not self._is_closing:
                self._try(self._wanted.get())

        self._thread = threading.Thread(target=rest, name="compiler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the program that it is compiling."""
        self._is_closing = True
        self._wanted.put(None)
        if self._thread:
            self._thread.join()

    def get(self, *key: str | int) -> Callable[..., Any]:
        """A compiled program; compiles it if no other thread has started to."""
        with self._lock:
            is_first = key not in self._programs
            program = self._programs.setdefault(key, Future())
        if is_first:
            try:
                program.set_result(self._compiled(*key))
            except BaseException as error:
                del self._programs[key]  # The next call tries again.
                program.set_exception(error)
        return program.result()

    def are_ready(self, keys: Iterable[Key]) -> bool:
        """Whether these programs are compiled."""
        return all(key in self._programs and self._programs[key].done() for key in keys)

    def want(self, keys: Iterable[Key]) -> bool:
        """`are_ready`; schedules the missing programs to be compiled next."""
        missing = [key for key in keys if not self.are_ready([key])]
        for key in missing:
            if key not in self._queued:
                self._queued.add(key)
                self._wanted.put(key)
        return not missing

    def room_of(self, filled: int) -> int:
        """The smallest of `rooms` for `filled` tokens."""
        return next(room for room in self.rooms if room >= filled)

    def to_begin(self, length: int, slots: int, count: int, room: int) -> list[Key]:
        """The programs needed to add a text to a batch.

        Args:
          length: number of tokens of the text.
          slots: rows of the cache before.
          count: rows of the cache after.
          room: slots per row of the cache before.
        """
        size = padded_size(length, self._model)
        one = self.room_of(size)
        wider, keys = max(room, one), [("prefill", size), ("draw",)]
        if count != slots:
            keys.append(("resize", slots, room, count, room))
        if wider != room:
            keys.append(("resize", count, room, count, wider))
        return [*keys, ("place", count, wider, one), ("step", count, wider)]

    def _stages(self) -> list[tuple[str, list[Key]]]:
        """All programs in the order of need, in groups with a description."""
        sizes = {padded_size(length, self._model) for length in range(1, self._model.context + 1)}
        least, *longer = sorted(sizes)
        counts = [1 << n for n in range(self._most_rows.bit_length())]
        return [
            ("a first answer", self.to_begin(least, 1, 1, self.rooms[0])),
            ("longer prompts", [("prefill", size) for size in longer]),
            *((f"{count} at once" if count > 1 else "longer texts", self._of_rows(count))
              for count in counts),
        ]  # fmt: skip

    def _of_rows(self, count: int) -> list[Key]:
        """The programs for a cache of `count` rows, and for resizing from and to half as many."""
        keys: list[Key] = []
        for room in self.rooms:
            if count > 1:
                keys += [("resize", count // 2, room, count, room),
                         ("resize", count, room, count // 2, room)]  # fmt: skip
            keys += [("place", count, room, one) for one in self.rooms if one <= room]
            keys.append(("step", count, room))
        return keys + [
            ("resize", count, room, count, wider)
            for room, wider in itertools.combinations(self.rooms, 2)
        ]

    def _compile_stage(self, what: str, keys: Sequence[Key], say: Callable[[str], None]) -> None:
        if not self._is_closing:
            say(f"compiling for {what}: {self.compiled} of {self.total} programs are ready")
        for key in keys:
            while not self._wanted.empty():
                self._try(self._wanted.get())
            if self._is_closing:
                return
            self._try(key)

    def _try(self, key: Key | None) -> None:
        if key is None or self._is_closing:
            return
        try:
            self.get(*key)
        except Exception as error:  # A request that needs it compiles it again and gets the error.
            print(f"warning: a program was not compiled: {error}", file=sys.stderr)
        finally:
            self._queued.discard(key)

    def _compiled(self, name: Any, *sizes: Any) -> Callable[..., Any]:
        """Compile the program of a `Key` ahead of time."""
        int32 = partial(jax.ShapeDtypeStruct, dtype=np.int32)
        arguments: tuple[Any, ...]
        static = {}
        if name == "prefill":
            arguments = (self._params, int32((1, *sizes)), int32(()))
            static = {"slots": self.room_of(*sizes)}
        elif name == "draw":
            logits = jax.ShapeDtypeStruct((1, self._model.vocabulary), np.float32)
            arguments = (logits, _drawing(1))
        elif name == "step":
            count, _ = sizes
            arguments = (self._params, self._cache(*sizes), int32((count,)), _drawing(count))
        elif name == "place":
            count, room, one = sizes
            alone = replace(self._cache(1, one), length=cast(jax.Array, int32(())))
            arguments = (self._cache(count, room), alone, int32(()))
        elif name == "resize":
            count, room, new, slots = sizes
            arguments, static = (self._cache(count, room), int32((new,))), {"slots": slots}
        else:
            arguments = (self._params, int32((1, *sizes)))
        return self._jitted[name].lower(*arguments, **static).compile()

    def _cache(self, count: int, room: int) -> Cache:
        return jax.eval_shape(partial(batched.empty, self._model, count, room))


def _drawing(count: int) -> batched.Drawing:
    each: Any = partial(jax.ShapeDtypeStruct, (count,))
    return batched.Drawing(
        each(np.uint32),
        each(np.int32),
        each(np.int32),
        each(np.float32),
        each(np.float32),
        each(np.bool_),
    )
