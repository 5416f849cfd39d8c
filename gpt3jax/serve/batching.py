"""Who may use the device: one thread owns the model, and requests wait for it in a bounded queue.

    request -> rows -> queue -> slot -> read the prompt -> step, step, ... -> pieces -> request

Rows of unlike requests are written together, one token each per step. A step is compiled for 1,
2, 4, ... rows (programs.py): a row that comes takes a free slot or doubles them, and when half of
them stand free they are halved; while others are written it waits for what is not compiled yet.
While no text is longer than a quarter of the context, no more of the cache is there to be read.
Every row has its own key, length and way of drawing (decoding/batched.py), so that its text is what
`gpt3jax generate` writes with its seed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
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
    """The thread that owns the model. Only it computes.

    Args:
      generator: the model.
      most_rows: rows that are written together, at most; a power of two.
      most_waiting: rows that wait for one of these places, at most.
    """

    def __init__(self, generator: Generator, most_rows: int, most_waiting: int) -> None:
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self.counts: Counter[str] = Counter()
        """Steps, rows in them, tokens, seconds: since the start, for /metrics."""
        self._tokenizer, self._params = generator.tokenizer, generator.params
        self._model, self.programs = generator.model, Programs(generator, most_rows)
        self._clear()
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="owner", daemon=True)

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Take requests, as soon as what one of them needs is compiled.

        Args:
          say: is told what is compiled, in lines.
        """
        self.programs.start(say)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it was writing fails."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self.programs.close()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Rows being written."""
        return sum(row is not None for row in self._slots)

    def submit(self, job: Job) -> None:
        """Queue the rows of a request.

        Raises:
          BusyError: they do not fit the queue.
          RunError: the thread has ended.
        """
        new = [
            Row(job, index, list(prompt) or [self._tokenizer.end_of_text],
                TextStream(self._tokenizer, job.asked.stop), Offsets(self._tokenizer))
            for index, prompt in enumerate(
                prompt for prompt in job.asked.prompts for _ in range(job.asked.samples)
            )
        ]  # fmt: skip
        with self._changed:
            if not self.is_alive:
                raise RunError("the server is shutting down")
            if len(self._waiting) + len(new) > self.most_waiting:
                raise BusyError("the queue is full")
            self._waiting.extend(new)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Write no more for a request; its places are free after the step that runs."""
        with self._changed:
            job.is_cancelled = True
            if any(row.job is job for row in self._waiting):
                kept = [row for row in self._waiting if row.job is not job]
                self._waiting.clear()
                self._waiting.extend(kept)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.active or self._is_closing):
                    self._changed.wait()
                if self._is_closing:
                    break
            try:
                self._turn()
            except Exception as error:  # Of any kind: who waits must be told, and others served.
                print(f"warning: a batch failed: {error}", file=sys.stderr)
                self._fail([row for row in self._slots if row], error)
        left = [row for row in self._slots if row] + list(self._waiting)
        self._waiting.clear()
        self._fail(left, RunError("the server is shutting down"))

    def _fail(self, failed: Sequence[Row], error: Exception) -> None:
        for job in {id(row.job): row.job for row in failed}.values():
            job.is_cancelled = True
            job.deliver(error)
        self._clear()  # What was given away to a step that failed is lost.

    def _turn(self) -> None:
        """Rows leave and come; then each of them gets a token."""
        drawn, self._ahead = self._ahead, None
        if drawn is None:
            self._arrange()
            if not any(row and not row.is_over for row in self._slots):
                return
            self._make_room(1 + max(row.filled for row in self._slots if row))
            drawn = self._compute_step()
        began = time.perf_counter()
        if self._may_go_on():
            # Dispatched before the host waits for these tokens: the device does not idle.
            self._ahead = self._compute_step(drawn.token)
        found = jax.tree.map(np.asarray, drawn)
        self.counts["step_seconds"] += time.perf_counter() - began
        self.counts["steps"] += 1
        self.counts["rows"] += self.active
        for slot, row in enumerate(self._slots):
            if row and not row.is_over:
                row.filled += 1
                self._take(row, found, slot)

    def _arrange(self) -> None:
        """Who is over leaves, who waits comes, and full windows are read again."""
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
                # The older half of the window is forgotten, as by `Generator.tokens`.
                self._read(row, (self._model.context + 1) // 2)

    def _may_go_on(self) -> bool:
        """Whether, as far as is known, the same rows take the step after this one."""
        found = [row for row in self._slots if row]
        return not self._waiting and all(
            not row.is_over
            and not row.job.is_cancelled
            and row.written + 1 < row.job.asked.most
            and row.filled + 2 <= self._room
            for row in found
        )

    def _admit(self) -> None:
        """Rows from the queue into slots, as many as may be; each gets its first token."""
        known: tuple[Job, list[int], jax.Array, Cache] | None = None
        while self._waiting and self.active < self.most_rows:
            with self._changed:
                if not self._waiting:  # Cancelled since.
                    return
                if not self._may_begin(self._waiting[0]):
                    return
                row = self._waiting.popleft()
            if None not in self._slots:
                self._fit(2 * len(self._slots), self._room)
            slot = self._slots.index(None)
            self._slots[slot] = row  # From here on a failure is told to its request.
            asked = row.job.asked
            self.counts["prompt_tokens"] += len(row.history) * (row.sample == 0)
            if asked.echo:
                self._echo(row)
            if asked.most == 0:
                self._finish(row, "length")
                self._slots[slot] = None
            elif known and known[:2] == (row.job, row.history):
                self._begin(row, *known[2:])
            else:
                before = list(row.history)
                known = (row.job, before, *self._read(row, self._model.context))

    def _may_begin(self, row: Row) -> bool:
        """Whether a row that waits holds up no other by what must be compiled for it first."""
        if self.active == 0:
            return True
        slots, length = len(self._slots), len(row.history)
        count = slots if None in self._slots else 2 * slots
        needed = self.programs.to_begin(length, slots, count, self._room)
        if row.job.asked.echo and row.job.asked.logprobs is not None:
            needed.append(("score", padded_size(length, self._model)))
        return self.programs.want(needed)

    def _read(self, row: Row, most: int) -> tuple[jax.Array, Cache]:
        """Fill a row's slot with the last tokens of its text, and draw the next."""
        logits, one = self._prefilled(row.history[-most:])
        self._begin(row, logits, one)
        return logits, one

    def _prefilled(self, window: Sequence[int]) -> tuple[jax.Array, Cache]:
        """Logits after a text, and its cache, with the least room that it was padded to."""
        size = padded_size(len(window), self._model)
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(window)] = window
        return self.programs.get("prefill", size)(self._params, padded, np.int32(len(window)))

    def _begin(self, row: Row, logits: jax.Array, one: Cache) -> None:
        """A row's slot takes over what was read, and the row draws a token."""
        row.filled = int(one.length)
        size = one.keys[0].shape[2]
        self._make_room(size)
        place = self.programs.get("place", len(self._slots), self._room, size)
        self._cache = place(self._cache, one, np.int32(self._slots.index(row)))
        drawn = self.programs.get("draw")(logits, self._drawing([row]))
        self._take(row, jax.tree.map(np.asarray, drawn), 0)

    def _compute_step(self, token_B: jax.Array | None = None) -> batched.Drawn:
        """One token per slot; what free slots get means nothing.

        Args:
          token_B: the rows' last tokens, where the host does not know them yet.
        """
        ahead = int(token_B is not None)
        if token_B is None:
            last = [row.history[-1] if row else 0 for row in self._slots]
            token_B = np.array(last, np.int32)
        length = [row.filled + ahead if row else 0 for row in self._slots]
        cache = self._cache.replace(length=np.array(length, np.int32))
        how = self._drawing(self._slots, ahead)
        step = self.programs.get("step", len(self._slots), self._room)
        drawn, self._cache = step(self._params, cache, token_B, how)
        return drawn

    def _drawing(self, among: Sequence[Row | None], ahead: int = 0) -> batched.Drawing:
        def each(of: Callable[[Row], Any], dtype: type, free: float = 0) -> np.ndarray:
            return np.array([of(row) if row else free for row in among], dtype)

        # Free slots draw plainly: they must not make all rows be sorted, as another top-p would.
        return batched.Drawing(
            seed=each(lambda row: row.job.asked.seed, np.uint32),
            # Also of the same prompt, and with the same seed, no two rows draw alike.
            sample=each(lambda row: row.index, np.int32),
            position=each(lambda row: len(row.history) + ahead, np.int32),
            temperature=each(lambda row: row.job.asked.temperature, np.float32, 1),
            top_p=each(lambda row: row.job.asked.top_p, np.float32, 1),
            is_scored=each(lambda row: row.job.asked.logprobs is not None, np.bool_),
        )

    def _clear(self) -> None:
        """One free slot, with the least room."""
        self._slots: list[Row | None] = [None]
        self._room = self.programs.rooms[0]
        self._ahead: batched.Drawn | None = None
        """A step that runs, and is not read yet."""
        self._cache = batched.empty(self._model, 1, self._room)

    def _make_room(self, filled: int) -> None:
        """So many slots of the cache for each row, at least."""
        if filled > self._room:
            self._fit(len(self._slots), self.programs.room_of(filled))

    def _fit(self, count: int, room: int) -> None:
        """Slots for as many rows, those that are taken first; of the cache, so much room."""
        taken = sorted(range(len(self._slots)), key=lambda slot: self._slots[slot] is None)
        order = np.resize(np.array(taken, np.int32), count)
        resize = self.programs.get("resize", len(taken), self._room, count, room)
        self._cache = resize(self._cache, order)
        new = count - len(taken)
        self._slots = [self._slots[slot] for slot in taken[:count]] + [None] * new
        self._room = room

    def _take(self, row: Row, drawn: batched.Drawn, at: int) -> None:
        """A row's next token becomes text; it may be the last."""
        token, asked = int(drawn.token[at]), row.job.asked
        row.history.append(token)
        row.written += 1
        row.unsent += 1
        self.counts["completion_tokens"] += 1
        text = row.stream.push(token)
        if asked.logprobs is not None and token != self._tokenizer.end_of_text:
            row.tokens.append(self._scored(row, token, drawn, at))
        is_last = row.stream.ended or row.written == asked.most
        if is_last and not row.stream.ended:
            text += row.stream.flush()
        row.text += text
        if row.stream.ended and token != self._tokenizer.end_of_text:
            # The text ends before a stop string, and so do its tokens.
            end = row.sent + len(row.text)
            row.tokens = [each for each in row.tokens if each.offset < end]
        if is_last:
            self._finish(row, "stop" if row.stream.ended else "length")
        elif asked.stream and row.text:
            self._deliver(row, None)

    def _scored(self, row: Row, token: int, drawn: batched.Drawn | None, at: int) -> Scored:
        offset = row.offsets.push(token)
        if drawn is None:
            return Scored(token, offset)
        best = zip(drawn.best[at].tolist(), drawn.best_log_probability[at].tolist(), strict=True)
        count = row.job.asked.logprobs or 0
        return Scored(token, offset, float(drawn.log_probability[at]), tuple(best)[:count])

    def _echo(self, row: Row) -> None:
        """The prompt is part of the text, and scored if scores are asked for."""
        asked = row.job.asked
        prompt = asked.prompts[row.index // asked.samples]
        row.text = self._tokenizer.decode(prompt)
        if asked.logprobs is None or not prompt:
            return
        size = padded_size(len(prompt), self._model)
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(prompt)] = prompt
        found = self.programs.get("score", size)(self._params, padded)
        found = jax.tree.map(np.asarray, found)
        row.tokens = [
            self._scored(row, token, found if at else None, at - 1)
            for at, token in enumerate(prompt)
        ]
        row.offsets.flush()

    def _finish(self, row: Row, finish: Finish) -> None:
        row.is_over = True
        self._deliver(row, finish)

    def _deliver(self, row: Row, finish: Finish | None) -> None:
        row.sent += len(row.text)
        # A token goes with the text that it begins in: the rest may be a stop string's.
        count = sum(finish is not None or each.offset < row.sent for each in row.tokens)
        tokens, row.tokens = tuple(row.tokens[:count]), row.tokens[count:]
        row.job.deliver(Piece(row.index, row.text, tokens, row.unsent, finish))
        row.text, row.unsent = "", 0
