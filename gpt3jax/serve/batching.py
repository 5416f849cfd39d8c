"""Continuous batching: one thread owns the model, and requests wait for it in a bounded queue.

    request -> rows -> queue -> slot -> prefill -> step, step, ... -> pieces -> request

Rows of different requests are decoded together, one token each per step. Steps are compiled for 1,
2, 4, ... rows (programs.py): a new row takes a free slot, or doubles the number of slots, which is
halved when half of them are free. A new row waits for programs that are not compiled yet while
other rows are being decoded. As long as no text is longer than a quarter of the context, the cache
has only that many slots per row. Each row has its own key, length and sampling parameters
(decoding/batched.py), so that its text is what `gpt3jax generate` gives with the same seed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gpt3jax.decoding import batched
from gpt3jax.decoding.generator import Generator, TextStream, padded_size
from gpt3jax.errors import RunError
from gpt3jax.model.gpt3 import Cache
from gpt3jax.serve.programs import Programs
from gpt3jax.serve.texts import Finish, Job, Offsets, Piece, Row, Scored


class BusyError(RunError):
    """The queue is full."""


class Owner:
    """The thread that owns the model; all computation happens in it.

    Args:
      generator: the model.
      most_rows: maximum rows that are decoded together; a power of two.
      most_waiting: maximum rows in the queue.
    """

    def __init__(self, generator: Generator, most_rows: int, most_waiting: int) -> None:
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self.counts: Counter[str] = Counter()
        """Totals of steps, rows, tokens and seconds since the start, for /metrics."""
        self._tokenizer, self._params = generator.tokenizer, generator.params
        self._model, self.programs = generator.model, Programs(generator, most_rows)
        self._clear()
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="owner", daemon=True)

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Accept requests as soon as the programs of a first answer are compiled.

        Args:
          say: called with lines that report the progress of compilation.
        """
        self.programs.start(say)
        self._thread.start()

    def close(self) -> None:
        """End the thread; requests in progress fail."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self.programs.close()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread accepts requests."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def waiting(self) -> int:
        """Number of rows in the queue."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Number of rows being decoded."""
        return sum(row is not None for row in self._slots)

    def submit(self, job: Job) -> None:
        """Queue the rows of a request.

        Raises:
          BusyError: the queue does not have room for them.
          RunError: the thread has ended.
        """
        new = [
            Row(
                job,
                index,
                list(prompt) or [self._tokenizer.end_of_text],
                TextStream(self._tokenizer, job.asked.stop),
                Offsets(self._tokenizer),
            )
            for index, prompt in enumerate(
                prompt for prompt in job.asked.prompts for _ in range(job.asked.samples)
            )
        ]
        with self._changed:
            if not self.is_alive:
                raise RunError("the server is shutting down")
            if len(self._waiting) + len(new) > self.most_waiting:
                raise BusyError("the queue is full")
            self._waiting.extend(new)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a request; its slots are freed after the current step."""
        with self._changed:
            job.is_cancelled = True
            if any(row.job is job for row in self._waiting):
                others = [row for row in self._waiting if row.job is not job]
                self._waiting.clear()
                self._waiting.extend(others)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.active or self._is_closing):
                    self._changed.wait()
                if self._is_closing:
                    break
            try:
                self._turn()
            except Exception as error:  # Any error is delivered, and the thread continues.
                print(f"warning: a batch failed: {error}", file=sys.stderr)
                self._fail([row for row in self._slots if row], error)
        unfinished = [row for row in self._slots if row] + list(self._waiting)
        self._waiting.clear()
        self._fail(unfinished, RunError("the server is shutting down"))

    def _fail(self, failed: Sequence[Row], error: Exception) -> None:
        for job in {id(row.job): row.job for row in failed}.values():
            job.is_cancelled = True
            job.deliver(error)
        self._clear()  # The failed step may have consumed the donated cache.

    def _turn(self) -> None:
        """Remove finished rows, admit waiting ones, and decode one token for each row."""
        drawn, self._ahead = self._ahead, None
        if drawn is None:
            self._arrange()
            if not any(row and not row.is_over for row in self._slots):
                return
            self._make_room(1 + max(row.filled for row in self._slots if row))
            drawn = self._compute_step()
        began = time.perf_counter()
        if self._can_step_ahead():
            # Dispatched before the host waits for these tokens, so that the device does not idle.
            self._ahead = self._compute_step(drawn.token)
        tokens = jax.tree.map(np.asarray, drawn)
        seconds: Any = time.perf_counter() - began
        self.counts["step_seconds"] += seconds
        self.counts["steps"] += 1
        self.counts["rows"] += self.active
        for slot, row in enumerate(self._slots):
            if row and not row.is_over:
                row.filled += 1
                self._take(row, tokens, slot)

    def _arrange(self) -> None:
        """Remove finished rows, admit waiting ones, and prefill rows with a full window again."""
        self._slots = [
            None if row is None or row.is_over or row.job.is_cancelled else row
            for row in self._slots
        ]
        if self.active == 0:
            self._clear()
        self._admit()
        while len(self._slots) > 1 and 2 * self.active <= len(self._slots):
            count, room = len(self._slots), self._room
            fewer = [("resize", count, room, count // 2, room), ("step", count // 2, room)]
            if not self.programs.want(fewer):
                break
            self._fit(count // 2, room)
        for row in list(self._slots):
            if row and row.filled == self._model.context and not row.is_over:
                # Drops the older half of the window, as `Generator.tokens` does.
                self._read(row, (self._model.context + 1) // 2)

    def _can_step_ahead(self) -> bool:
        """Whether the next step will have the same rows, unless one of them ends with this step."""
        rows = [row for row in self._slots if row]
        return not self._waiting and all(
            not row.is_over
            and not row.job.is_cancelled
            and row.written + 1 < row.job.asked.most
            and row.filled + 2 <= self._room
            for row in rows
        )

    def _admit(self) -> None:
        """Move as many rows as possible from the queue into slots; each gets its first token."""
        previous: tuple[Job, list[int], jax.Array, Cache] | None = None
        while self._waiting and self.active < self.most_rows:
            with self._changed:
                if not self._waiting:  # Cancelled meanwhile.
                    return
                if not self._may_begin(self._waiting[0]):
                    return
                row = self._waiting.popleft()
            if None not in self._slots:
                self._fit(2 * len(self._slots), self._room)
            slot = self._slots.index(None)
            self._slots[slot] = row  # From here on, a failure is delivered to its request.
            request = row.job.asked
            self.counts["prompt_tokens"] += len(row.history) * (row.sample == 0)
            if request.echo:
                self._echo(row)
            if request.most == 0:
                self._finish(row, "length")
                self._slots[slot] = None
            elif previous and previous[:2] == (row.job, row.history):
                self._begin(row, *previous[2:])  # Another sample of the same prompt.
            else:
                prompt = list(row.history)
                previous = (row.job, prompt, *self._read(row, self._model.context))

    def _may_begin(self, row: Row) -> bool:
        """Whether a waiting row can start without making active rows wait for compilation."""
        if self.active == 0:
            return True
        slots, length = len(self._slots), len(row.history)
        count = slots if None in self._slots else 2 * slots
        needed = self.programs.to_begin(length, slots, count, self._room)
        if row.job.asked.echo and row.job.asked.logprobs is not None:
            needed.append(("score", padded_size(length, self._model)))
        return self.programs.want(needed)

    def _read(self, row: Row, most: int) -> tuple[jax.Array, Cache]:
        """Prefill a row's slot with the last `most` tokens of its text, and sample the next."""
        logits, one = self._prefilled(row.history[-most:])
        self._begin(row, logits, one)
        return logits, one

    def _prefilled(self, window: Sequence[int]) -> tuple[jax.Array, Cache]:
        """Prefill a window: logits after it, and a cache of one row."""
        size = padded_size(len(window), self._model)
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(window)] = window
        return self.programs.get("prefill", size)(self._params, padded, np.int32(len(window)))

    def _begin(self, row: Row, logits: jax.Array, one: Cache) -> None:
        """Copy a prefilled cache into a row's slot, and sample the row's first token."""
        row.filled = int(one.length)
        size = one.keys[0].shape[2]
        self._make_room(size)
        place = self.programs.get("place", len(self._slots), self._room, size)
        self._cache = place(self._cache, one, np.int32(self._slots.index(row)))
        drawn = self.programs.get("draw")(logits, self._drawing([row]))
        self._take(row, jax.tree.map(np.asarray, drawn), 0)

    def _compute_step(self, token_B: jax.Array | None = None) -> batched.Drawn:
        """Decode one token per slot; results of free slots are meaningless.

        Args:
          token_B: the rows' last tokens, if they are still on the device.
        """
        ahead = int(token_B is not None)
        last_B: jax.Array | np.ndarray
        if token_B is None:
            last_B = np.array([row.history[-1] if row else 0 for row in self._slots], np.int32)
        else:
            last_B = token_B
        length_B: Any = np.array(
            [row.filled + ahead if row else 0 for row in self._slots], np.int32
        )
        cache = replace(self._cache, length=length_B)
        how = self._drawing(self._slots, ahead)
        step = self.programs.get("step", len(self._slots), self._room)
        drawn, self._cache = step(self._params, cache, last_B, how)
        return drawn

    def _drawing(self, among: Sequence[Row | None], ahead: int = 0) -> batched.Drawing:
        """The sampling parameters of rows; `ahead` tokens are not in their histories yet."""

        def each(value: Callable[[Row], Any], dtype: type, free: float = 0) -> Any:
            return np.array([value(row) if row else free for row in among], dtype)

        # Free slots have top-p 1, since another value would make the step sort all logits.
        return batched.Drawing(
            seed=each(lambda row: row.job.asked.seed, np.uint32),
            # The index makes rows of the same prompt and seed differ.
            sample=each(lambda row: row.index, np.int32),
            position=each(lambda row: len(row.history) + ahead, np.int32),
            temperature=each(lambda row: row.job.asked.temperature, np.float32, 1),
            top_p=each(lambda row: row.job.asked.top_p, np.float32, 1),
            is_scored=each(lambda row: row.job.asked.logprobs is not None, np.bool_),
        )

    def _clear(self) -> None:
        """Reset to one free slot with the smallest room."""
        self._slots: list[Row | None] = [None]
        self._room = self.programs.rooms[0]
        self._ahead: batched.Drawn | None = None
        """The result of a dispatched step that has not been read yet."""
        self._cache = batched.empty(self._model, 1, self._room)

    def _make_room(self, filled: int) -> None:
        """Grow the cache to at least `filled` slots per row."""
        if filled > self._room:
            self._fit(len(self._slots), self.programs.room_of(filled))

    def _fit(self, count: int, room: int) -> None:
        """Resize to `count` rows, occupied ones first, and `room` cache slots per row."""
        taken = sorted(range(len(self._slots)), key=lambda slot: self._slots[slot] is None)
        order = np.resize(np.array(taken, np.int32), count)
        resize = self.programs.get("resize", len(taken), self._room, count, room)
        self._cache = resize(self._cache, order)
        new = count - len(taken)
        self._slots = [self._slots[slot] for slot in taken[:count]] + [None] * new
        self._room = room

    def _take(self, row: Row, drawn: batched.Drawn, at: int) -> None:
        """Append a row's next token to its text, and finish or deliver the row."""
        token, request = int(drawn.token[at]), row.job.asked
        row.history.append(token)
        row.written += 1
        row.unsent += 1
        self.counts["completion_tokens"] += 1
        text = row.stream.push(token)
        if request.logprobs is not None and token != self._tokenizer.end_of_text:
            row.tokens.append(self._scored(row, token, drawn, at))
        is_last = row.stream.ended or row.written == request.most
        if is_last and not row.stream.ended:
            text += row.stream.flush()
        row.text += text
        if row.stream.ended and token != self._tokenizer.end_of_text:
            # The text ends before the stop string; drop the tokens after that.
            end = row.sent + len(row.text)
            row.tokens = [each for each in row.tokens if each.offset < end]
        if is_last:
            self._finish(row, "stop" if row.stream.ended else "length")
        elif request.stream and row.text:
            self._deliver(row, None)

    def _scored(self, row: Row, token: int, drawn: batched.Drawn | None, at: int) -> Scored:
        offset = row.offsets.push(token)
        if drawn is None:
            return Scored(token, offset)
        best = zip(drawn.best[at].tolist(), drawn.best_log_probability[at].tolist(), strict=True)
        count = row.job.asked.logprobs or 0
        return Scored(token, offset, float(drawn.log_probability[at]), tuple(best)[:count])

    def _echo(self, row: Row) -> None:
        """Add the prompt to the text, with logprobs if requested."""
        request = row.job.asked
        prompt = request.prompts[row.index // request.samples]
        row.text = self._tokenizer.decode(prompt)
        if request.logprobs is None or not prompt:
            return
        size = padded_size(len(prompt), self._model)
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(prompt)] = prompt
        scores = self.programs.get("score", size)(self._params, padded)
        scores = jax.tree.map(np.asarray, scores)
        row.tokens = [
            self._scored(row, token, scores if at else None, at - 1)
            for at, token in enumerate(prompt)
        ]
        row.offsets.flush()

    def _finish(self, row: Row, finish: Finish) -> None:
        row.is_over = True
        self._deliver(row, finish)

    def _deliver(self, row: Row, finish: Finish | None) -> None:
        row.sent += len(row.text)
        # A token is delivered with the text in which it begins; later ones may be removed by a
        # stop string.
        count = sum(finish is not None or each.offset < row.sent for each in row.tokens)
        tokens, row.tokens = tuple(row.tokens[:count]), row.tokens[count:]
        row.job.deliver(Piece(row.index, row.text, tokens, row.unsent, finish))
        row.text, row.unsent = "", 0
