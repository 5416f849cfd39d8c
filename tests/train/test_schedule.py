"""Learning rate and batch as functions of tokens, at the values the paper's rules give."""

import contextlib
import dataclasses
import math
from pathlib import Path

import jax
import pytest

from gpt3jax.config import Mesh, Schedule
from gpt3jax.errors import ConfigError
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.run_setup import check_decay_ends
from gpt3jax.train.schedules import (
    Microbatches,
    batch_range,
    batch_windows,
    is_done,
    learning_rate,
    stretches,
    total_tokens,
)
from gpt3jax.train.train import train
from gpt3jax.user_code import load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
B = 1_000_000_000


@pytest.fixture(scope="module")
def small():
    """GPT-3 125M: 524,288 tokens a batch, ramped from 32,768 over 4B; microbatch 16."""
    return load_experiment(EXPERIMENTS / "gpt3_125m.py")


def with_train(experiment, **fields):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **fields))


def walk(experiment, most=None):
    """(tokens before, sequences) of every batch, in order, one step after another."""
    tokens = step = 0
    while not is_done(step, tokens, experiment) and step != most:
        sequences = batch_windows(tokens, experiment)
        yield tokens, sequences
        tokens += sequences * experiment.model.context
        step += 1


@pytest.mark.parametrize(
    ("tokens", "fraction"),
    [
        (0, 0.0),
        (187_500_000, 0.5),
        (375_000_000, 1.0),
        (65 * B, 0.869279),
        (130_187_500_000, 0.55),
        (195 * B, 0.232163),
        (260 * B, 0.1),
        (300 * B, 0.1),
    ],
)
def test_the_learning_rate_follows_the_paper(tokens, fraction):
    for peak in (1.0, 6.0e-4):
        found = learning_rate(tokens, Schedule(peak_learning_rate=peak))
        assert found == pytest.approx(peak * fraction, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        # Warm-up to 100, and a decay to 1000 from there, at tokens 50, 100, 325, 550, 1000, 2000.
        ({"decay": "linear"}, [0.5, 1, 0.775, 0.55, 0.1, 0.1]),
        ({"decay": "1-sqrt"}, [0.5, 1, 0.55, 0.363604, 0.1, 0.1]),
        # Over the last tenth or half: constant until 900 or 500.
        ({"decay": "linear", "decay_fraction": 0.1}, [0.5, 1, 1, 1, 0.1, 0.1]),
        ({"decay": "linear", "decay_fraction": 0.5}, [0.5, 1, 1, 0.91, 0.1, 0.1]),
        ({"decay": "1-sqrt", "decay_fraction": 0.5}, [0.5, 1, 1, 0.715395, 0.1, 0.1]),
        ({"decay_fraction": 0.5}, [0.5, 1, 1, 0.977975, 0.1, 0.1]),
        ({"decay_fraction": 0.0}, [0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_a_decay_has_the_values_computed_by_hand(fields, rates):
    schedule = Schedule(3.0, warmup_tokens=100, decay_tokens=1000, **fields)
    found = [learning_rate(tokens, schedule) / 3 for tokens in (50, 100, 325, 550, 1000, 2000)]
    assert found == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "step"}, r"--schedule\.decay"),
        ({"decay_fraction": 1.5}, r"--schedule\.decay-fraction is 1\.5"),
        ({"decay_fraction": -0.1}, r"--schedule\.decay-fraction"),
    ],
)
def test_an_invalid_decay_is_refused_in_words(fields, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(1.0, **fields)


@pytest.mark.parametrize(
    ("decay_tokens", "fraction", "is_refused"),
    [(2383, 1.0, False), (2384, 1.0, True), (2384, 0.1, True), (2384, 0.0, False)],
)
def test_a_run_that_ends_before_its_rate_has_decayed_is_refused(
    experiment, decay_tokens, fraction, is_refused
):
    """2,000 tokens in batches of 384: the last batch ends before 2,384."""
    schedule = dataclasses.replace(
        experiment.schedule, warmup_tokens=0, decay_tokens=decay_tokens, decay_fraction=fraction
    )
    short = dataclasses.replace(with_train(experiment, tokens=2000), schedule=schedule)
    refused = pytest.raises(ConfigError, match=r"decay-tokens is 2,384, but the run ends after 2,0")
    with refused if is_refused else contextlib.nullcontext():
        check_decay_ends(short)


def test_a_decay_beyond_the_run_starts_nothing(tmp_path, experiment):
    short = with_train(experiment, tokens=2000)
    with pytest.raises(ConfigError, match="its learning rate would not have decayed"):
        train(short, tmp_path / "run", mesh=make_mesh(Mesh(data=1), jax.devices()[:1]))
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_the_learning_rate_has_no_jump_where_its_pieces_meet():
    schedule = Schedule(peak_learning_rate=1.0)
    for joint in (schedule.warmup_tokens, schedule.decay_tokens):
        before, after = learning_rate(joint - 1, schedule), learning_rate(joint, schedule)
        assert before == pytest.approx(after, abs=1e-8)


def test_a_schedule_without_warm_up_starts_at_the_peak():
    assert learning_rate(0, Schedule(peak_learning_rate=3.0, warmup_tokens=0)) == 3.0


def test_the_batch_grows_from_32768_tokens_to_full_by_single_windows(small):
    in_ramp = [sequences for tokens, sequences in walk(small, 25_000) if tokens < 4 * B]
    assert in_ramp[0] * small.model.context == 32_768
    assert in_ramp == sorted(in_ramp)
    assert set(in_ramp) == set(range(16, 257)), "every number of windows"
    for tokens in (4 * B, 4 * B + 1, 300 * B):
        assert batch_windows(tokens, small) == 256


def test_the_ramp_is_linear_in_tokens(small):
    halfway = batch_windows(2 * B, small) * small.model.context
    assert halfway == pytest.approx((32_768 + 524_288) / 2, abs=2048 / 2)


def test_the_ramp_takes_the_steps_that_its_integral_gives(small):
    """dt / B(t) over the ramp."""
    ramp, low, full = 4 * B, 32_768, 524_288
    assert ramp / (full - low) * math.log(full / low) == pytest.approx(22_563, abs=1)
    steps = sum(1 for tokens, _ in walk(small, 30_000) if tokens < ramp)
    assert steps == pytest.approx(22_563, rel=0.001)


@pytest.mark.parametrize("microbatch", [1, 2, 16, 64, 256])
def test_microbatches_read_what_the_walk_reads_whatever_their_size(small, microbatch):
    short = with_train(small, ramp_tokens=200 * 32_768, microbatch=microbatch)
    start = sum(sequences for _, sequences in walk(short, 5))
    microbatches = Microbatches(stretches(short, start), microbatch, start)
    at, windows = 0, start
    for _, size in list(walk(short, 60))[5:]:
        for _ in range(-(-size // microbatch)):
            span = microbatches[at]
            assert span.start == windows and 0 < len(span) <= microbatch
            at, windows = at + 1, span.stop
        start += size
        assert windows == start, "a microbatch does not reach into the next batch"


def test_no_ramp_means_a_full_batch_from_the_start(small):
    plain = with_train(small, ramp_tokens=0)
    assert [sequences for _, sequences in walk(plain, 3)] == [256, 256, 256]
    assert batch_range(3, plain) == range(768, 1024)


def test_the_batch_depends_on_tokens_and_on_nothing_that_a_resume_may_change(small):
    other = dataclasses.replace(
        with_train(small, steps=7, tokens=5 * B, log_every=1, save_every=2, keep=1, microbatch=8),
        mesh=Mesh(data=2, fsdp=2), seed=5, name="other",
    )  # fmt: skip
    tokens = [3 * B, 0, 17, 300 * B, 2 * B, 3 * B]
    found = [batch_windows(t, small) for t in tokens]
    assert found == [batch_windows(t, other) for t in tokens]
    assert found[0] == found[-1], "and not on what was asked before"


def test_a_batch_read_by_number_is_the_one_the_walk_reaches(small):
    starts = [tokens // 2048 for tokens, _ in walk(small, 24_000)]
    sizes = [sequences for _, sequences in walk(small, 24_000)]
    for batch in (0, 1, 2, 999, 5_000, 22_000, 23_999):
        assert batch_range(batch, small) == range(starts[batch], starts[batch] + sizes[batch])


def test_batches_leave_no_gap_and_no_overlap(small):
    short = with_train(small, ramp_tokens=20 * 32_768)
    ranges = [batch_range(batch, short) for batch in range(30)]
    assert ranges[0].start == 0 and len(ranges[-1]) == 256
    for one, following in zip(ranges, ranges[1:], strict=False):
        assert one.stop == following.start


@pytest.mark.parametrize("steps", [1, 100, 22_000, 30_000])
def test_the_total_of_a_run_that_counts_steps_is_what_the_walk_sums_to(small, steps):
    limited = with_train(small, steps=steps)
    walked = sum(sequences for _, sequences in walk(limited)) * 2048
    assert total_tokens(limited) == walked


def test_a_run_ends_at_the_first_of_its_tokens_and_its_steps(small):
    assert not is_done(10**9, 300 * B - 1, small)
    assert is_done(0, 300 * B, small)
    limited = with_train(small, steps=3)
    assert not is_done(2, 0, limited)
    assert is_done(3, 0, limited)
    assert total_tokens(small) == 300 * B
    assert total_tokens(with_train(small, steps=10**9)) == 300 * B


def test_tokens_beyond_32_bits_stay_exact_integers(small):
    plain = with_train(small, ramp_tokens=0, steps=5_000_001, tokens=10**13)
    assert total_tokens(plain) == 5_000_001 * 524_288
    last = batch_range(5_000_000, plain)
    assert last == range(5_000_000 * 256, 5_000_001 * 256)
    assert type(total_tokens(plain)) is type(last.start) is int
    assert type(batch_windows(2**40, plain)) is int
    schedule = Schedule(peak_learning_rate=1.0, warmup_tokens=2**40, decay_tokens=2**41)
    assert learning_rate(2**40 - 1, schedule) == (2**40 - 1) / 2**40 < 1.0
