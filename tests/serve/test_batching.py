"""Rows that are written together: each as if it were alone."""

import dataclasses
import queue
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from building import logits_of

from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.model.init import init_params
from gpt3jax.serve.api import Completion
from gpt3jax.serve.batching import BusyError, Owner
from gpt3jax.serve.programs import Programs
from gpt3jax.serve.texts import Job, Offsets

PATIENCE = 60


def asked(prompt=(5, 77, 123), **fields):
    defaults = {
        "prompts": (tuple(prompt),), "most": 12, "temperature": 1.0, "top_p": 1.0, "samples": 1,
        "stop": (), "logprobs": 5, "echo": False, "seed": 0, "stream": False,
        "include_usage": False,
    }  # fmt: skip
    return Completion(**{**defaults, **fields})


def submit(owner, request):
    found = queue.Queue()
    job = Job(request, found.put)
    owner.submit(job)
    return job, found


def finished(found, rows=1):
    """What each row wrote, by its index: text, tokens and how it ended."""
    texts, tokens, ends = {}, {}, {}
    while len(ends) < rows:
        piece = found.get(timeout=PATIENCE)
        if isinstance(piece, Exception):
            raise piece
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        tokens.setdefault(piece.index, []).extend(piece.tokens)
        if piece.finish:
            ends[piece.index] = piece.finish
    return [(texts[i], tokens[i], ends[i]) for i in range(rows)]


def alone(generator, request, prompt, sample):
    """Token ids that `Generator` draws, up to the end of the text."""
    sampling = Sampling(request.temperature, top_p=request.top_p)
    drawn = generator.tokens(
        prompt, new_tokens=request.most, rows=request.samples, sampling=sampling, seed=request.seed
    )
    ids = [int(each[sample]) for each in drawn]
    end = generator.tokenizer.end_of_text
    return ids[: ids.index(end)] if end in ids else ids


def ids_of(tokens):
    return [each.token for each in tokens]


def test_every_row_is_what_it_would_be_alone(generator, owner):
    """Prompts of unlike lengths and beyond the window, any temperature, two samples: together."""
    requests = [
        asked([7 + n for n in range(length)], most=most, temperature=temperature, top_p=top_p,
              samples=samples, seed=seed)
        for seed, (length, most, temperature, top_p, samples) in enumerate([
            (0, 5, 1.0, 1.0, 1), (1, 40, 1.0, 1.0, 2), (31, 3, 0.7, 1.0, 1), (32, 50, 1.0, 0.9, 1),
            (20, 1, 0.0, 1.0, 1), (9, 70, 0.0, 1.0, 1), (17, 20, 1.5, 0.5, 3), (3, 30, 1.0, 1.0, 1),
        ])
    ]  # fmt: skip
    jobs = [submit(owner, request)[1] for request in requests]
    for request, found in zip(requests, jobs, strict=True):
        for sample, (text, tokens, end) in enumerate(finished(found, request.samples)):
            expected = alone(generator, request, request.prompts[0], sample)
            assert ids_of(tokens) == expected, request
            assert text == generator.tokenizer.decode(expected)
            assert end == ("length" if len(expected) == request.most else "stop")


@pytest.fixture
def fresh(generator):
    """() -> an owner whose programs no other test has compiled; of four rows at a time."""
    model = dataclasses.replace(generator.model, context=40)
    params = init_params(jax.random.key(0), model)
    owners = []

    def fresh():
        owners.append(Owner(Generator(params, model, generator.tokenizer), 4, 24))
        return owners[-1]

    yield fresh
    for owner in owners:
        owner.close()


def test_a_first_answer_needs_four_programs_and_others_compile_on_demand(fresh, monkeypatch):
    compile_stage, lines = Programs._compile_stage, []

    def first_only(self, what, *rest):
        if what == "a first answer":
            compile_stage(self, what, *rest)

    monkeypatch.setattr(Programs, "_compile_stage", first_only)
    owner = fresh()
    owner.start(lines.append)
    finished(submit(owner, asked([9] * 5, most=6))[1])
    assert owner.programs.compiled == 4
    assert (
        lines[0] == f"compiling for a first answer: 0 of {owner.programs.total} programs are ready"
    )
    finished(submit(owner, asked([9] * 20, most=15, samples=2))[1], 2)
    assert owner.programs.compiled > 4


def test_what_is_compiled_behind_is_all_that_texts_need(fresh):
    """Rows that come and go, texts that grow and are read again: nothing new is compiled."""
    owner, lines, counted = fresh(), [], []
    owner.start(lines.append)
    wait_until(lambda: owner.programs.compiled == owner.programs.total)
    wait_until(lambda: lines[-1].startswith(f"compiled {owner.programs.total} of"))

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    finished(submit(owner, asked())[1])  # What jax itself compiles to make arrays.
    jax.monitoring.register_event_duration_secs_listener(count)
    for together in ((1,), (1, 9, 9), (20, 1), (40, 3, 17, 33, 2)):
        jobs = [
            submit(owner, asked([9] * length, most=most, seed=seed, samples=1 + seed % 2))[1]
            for seed, (length, most) in enumerate(zip(together, (70, 3, 12, 30, 1), strict=False))
        ]
        for seed, found in enumerate(jobs):
            finished(found, 1 + seed % 2)
    assert counted == []
    jax.jit(lambda x: x + len(lines))(1.0)
    assert counted, "it counts"
    jax.monitoring.unregister_event_duration_listener(count)


def test_who_comes_while_programs_are_compiled_holds_up_nobody(fresh, monkeypatch):
    """Steps of two rows are never ready: a second text waits, and is written after the first."""
    owner, go = fresh(), threading.Event()
    compiled = owner.programs._compiled

    def stuck(name, *sizes):
        if name == "step" and sizes[0] > 1:
            assert threading.current_thread().name == "compiler"
            go.wait(PATIENCE)
        return compiled(name, *sizes)

    monkeypatch.setattr(owner.programs, "_compiled", stuck)
    owner.start()
    requests = [asked([9] * 3, most=30, seed=seed) for seed in (1, 2)]
    jobs = [submit(owner, request)[1] for request in requests]
    texts = [finished(found)[0][0] for found in jobs]
    assert not owner.programs.are_ready([("step", 2, owner.programs.rooms[0])])
    go.set()
    assert [finished(submit(owner, each)[1])[0][0] for each in requests] == texts


def test_who_needs_a_program_late_waits_for_it_and_not_for_others(fresh):
    """Scores of an echoed prompt, which are compiled when somebody asks for them."""
    owner = fresh()
    owner.start()
    wait_until(lambda: owner.programs.compiled == owner.programs.total)
    job, found = submit(owner, asked(most=10**6, stream=True, temperature=0.0))
    found.get(timeout=PATIENCE)
    finished(submit(owner, asked([9] * 3, most=2, echo=True))[1])
    wait_until(lambda: owner.active == 1)  # The other has left; this one is still written.
    assert owner.programs.are_ready([("score", 16)])
    owner.cancel(job)


def test_log_probabilities_are_those_of_a_whole_forward_pass(generator, owner):
    """Of what is written and of an echoed prompt, beside others."""
    others = [submit(owner, asked([9] * n, most=25, seed=n)) for n in (2, 11)]
    prompt = [5, 77, 123, 9, 200, 44]
    request = asked(prompt, most=10, echo=True, seed=3)
    ((text, tokens, _),) = finished(submit(owner, request)[1])
    ids = ids_of(tokens)
    assert ids[:6] == prompt and text.startswith(generator.tokenizer.decode(prompt))
    logits = logits_of(generator.params, np.array([ids], np.int32), generator.model)
    log_TV = jax.nn.log_softmax(logits[0, :, : generator.model.vocabulary])
    assert tokens[0].log_probability is None and tokens[0].best == ()
    for at, scored in enumerate(tokens[1:]):
        assert scored.log_probability == pytest.approx(float(log_TV[at, ids[at + 1]]), abs=1e-5)
        best, logs = zip(*scored.best, strict=True)
        assert list(best) == np.argsort(-log_TV[at], stable=True)[:5].tolist()
        np.testing.assert_allclose(logs, np.sort(log_TV[at])[::-1][:5], atol=1e-5)
    for _, found in others:
        finished(found)


def test_offsets_are_where_the_character_of_a_tokens_first_byte_begins():
    """Also in a character that is split, broken by what follows, or none."""
    spelled = [b"a", b"\xc3", b"\xa9b", b"\xe2", b"s", b"\xe0", b"\x80", b"", b"\xf0\x9f", b"xy"]
    assert b"".join(spelled).decode(errors="replace") == "a\u00e9b\ufffds\ufffd\ufffd\ufffdxy"
    offsets = Offsets(SimpleNamespace(token_bytes=spelled.__getitem__))
    assert [offsets.push(n) for n in range(len(spelled))] == [0, 1, 1, 3, 4, 5, 6, 7, 7, 8]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_end_where_a_stop_string_ends_the_text(generator, owner, stream):
    """Stop strings that begin and end anywhere in tokens; nothing of a piece comes too early."""
    request = asked([60, 61], most=40, seed=4, stream=stream)
    ((whole, tokens, _),) = finished(submit(owner, request)[1])
    spelled = [generator.tokenizer.token_bytes(each.token) for each in tokens]
    assert b"".join(spelled).decode(errors="replace") == whole
    for first in range(3, 20, 4):
        for length in (1, 2, 5):
            stop = whole[first : first + length]
            end = whole.index(stop)
            found = submit(owner, dataclasses.replace(request, stop=(stop,)))[1]
            text, sent = "", []
            while True:
                piece = found.get(timeout=PATIENCE)
                text, sent = text + piece.text, [*sent, *piece.tokens]
                assert all(each.offset < len(text) for each in sent)
                if piece.finish:
                    break
            assert (text, piece.finish) == (whole[:end], "stop")
            expected = [each for each in tokens if each.offset < end]
            assert ids_of(sent) == ids_of(expected)
            assert b"".join(spelled[: len(sent)]).decode(errors="replace")[:end] == text


def test_an_echoed_prompt_ends_before_what_is_written(generator, owner):
    """A character that the prompt only begins is broken, whatever is written after it."""
    begun = next(t for t in range(300) if generator.tokenizer.token_bytes(t) == b"\xc3")
    request = asked([60, begun], most=8, seed=1, echo=True)
    ((text, tokens, _),) = finished(submit(owner, request)[1])
    given = generator.tokenizer.decode([60, begun])
    assert text.startswith(given) and given.endswith("\ufffd")
    assert tokens[1].offset == len(given) - 1 and tokens[2].offset == len(given)


def test_nothing_is_written_for_zero_tokens(owner):
    ((text, tokens, end),) = finished(submit(owner, asked(most=0))[1])
    assert (text, tokens, end) == ("", [], "length")
    ((_, tokens, _),) = finished(submit(owner, asked(most=0, echo=True))[1])
    assert ids_of(tokens) == [5, 77, 123]


def wait_until(condition):
    for _ in range(PATIENCE * 100):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.fixture
def held(generator):
    """An owner whose steps wait: (owner, go)."""
    owner, go = Owner(generator, 2, 3), threading.Event()
    turn = owner._turn
    owner._turn = lambda: (go.wait(PATIENCE), turn())
    owner.start()
    yield owner, go
    go.set()
    owner.close()


def test_the_queue_is_bounded_and_a_cancelled_request_leaves_it(held):
    owner, go = held
    first, found = submit(owner, asked(most=5))
    kept = submit(owner, asked(most=4, samples=2))[0]
    assert owner.waiting == 3
    with pytest.raises(BusyError):
        submit(owner, asked())
    owner.cancel(kept)
    assert owner.waiting == 1
    later = submit(owner, asked(samples=2, most=3))[1]
    go.set()
    assert len(ids_of(finished(found)[0][1])) <= 5
    finished(later, 2)
    wait_until(lambda: owner.active == 0)


def test_a_cancelled_text_is_written_no_further(generator, owner):
    before = owner.counts["completion_tokens"]
    job, found = submit(owner, asked(most=200, stream=True, temperature=0.0))
    found.get(timeout=PATIENCE)
    owner.cancel(job)
    wait_until(lambda: owner.active == 0)
    assert owner.counts["completion_tokens"] - before < 200


def test_a_failure_is_told_to_who_waits_and_others_are_served(held, monkeypatch, capsys):
    owner, go = held
    step = owner._compute_step
    monkeypatch.setattr(
        owner, "_compute_step", lambda *a: (_ for _ in ()).throw(RuntimeError("lost"))
    )
    _, found = submit(owner, asked())
    go.set()
    with pytest.raises(RuntimeError, match="lost"):
        finished(found)
    assert "a batch failed" in capsys.readouterr().err
    owner._compute_step = step
    finished(submit(owner, asked())[1])


def test_what_waits_when_the_server_ends_is_told(held):
    owner, go = held
    _, found = submit(owner, asked())
    ending = threading.Thread(target=owner.close)
    ending.start()
    wait_until(lambda: not owner.is_alive)
    go.set()
    ending.join(PATIENCE)
    with pytest.raises(Exception, match="shutting down"):
        finished(found)
    with pytest.raises(Exception, match="shutting down"):
        submit(owner, asked())
