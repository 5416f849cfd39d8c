"""The training order is a pure function of (data, seed, index)."""

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from gpt3jax.config import Data, Source
from gpt3jax.data.loader import batches, epochs, held_out, identity, windows
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.errors import ConfigError
from gpt3jax.train.schedules import Microbatches

CONTEXT = 32


@pytest.fixture(scope="module")
def one(data):
    return Data((Source("texts", str(data.folder)),))


@pytest.fixture(scope="module")
def mixed(data, other):
    return Data((Source("texts", str(data.folder), 3), Source("other", str(other.folder), 1)))


def take(order, count, start=0, microbatch=8, rows=range(8)):
    spans = Microbatches([(microbatch, 2**40)], microbatch, start)
    iterator = batches(order, spans, rows, CONTEXT + 1)
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return np.stack(found)


def test_batches_restart_at_any_position(mixed):
    whole = take(windows(mixed, 0, CONTEXT), 12)
    order = windows(mixed, 0, CONTEXT)
    assert (whole.reshape(-1, CONTEXT + 1) == [order[i] for i in range(96)]).all()
    assert whole.shape == (12, 8, CONTEXT + 1) and whole.dtype == np.int32
    for step in (0, 1, 7):
        assert (take(windows(mixed, 0, CONTEXT), 12 - step, start=8 * step) == whole[step:]).all()
    # A microbatch of another size goes through the same sequences.
    assert (take(windows(mixed, 0, CONTEXT), 24, microbatch=4, rows=range(4)).ravel()
            == whole.ravel()).all()  # fmt: skip
    # Position is a Python integer, without a limit that training could reach.
    assert take(windows(mixed, 0, CONTEXT), 1, start=10**12).shape == (1, 8, CONTEXT + 1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_each_batch(mixed, processes):
    order = windows(mixed, 0, CONTEXT)
    per = 8 // processes
    parts = [take(order, 5, rows=range(p * per, (p + 1) * per)) for p in range(processes)]
    assert (np.concatenate(parts, axis=1) == take(order, 5)).all()


def test_an_epoch_gives_each_window_once_and_is_shuffled_anew(one, data):
    order = windows(one, 0, CONTEXT)
    n = data.train_windows
    epochs = [[order.locate(e * n + i) for i in range(n)] for e in range(3)]
    indices = [[place.window for place in epoch] for epoch in epochs]
    assert all(sorted(epoch) == list(range(n)) for epoch in indices)
    assert len({tuple(epoch) for epoch in indices}) == 3
    assert all(place.epoch == e for e, epoch in enumerate(epochs) for place in epoch)


def test_mixture_has_the_proportions_asked_for(mixed):
    order = windows(mixed, 0, CONTEXT)
    names = [order.locate(i).source for i in range(4000)]
    assert names.count("texts") == 3000
    assert all(abs(names[i : i + 40].count("texts") - 30) <= 1 for i in range(0, 4000, 40))


def test_epochs_count_how_often_each_source_is_read(mixed, one):
    """By the origin of each window: passes over a source of a mixture, and of one alone."""
    for data in (mixed, one):
        order, planned = windows(data, 0, CONTEXT), epochs(data, CONTEXT, 3000)
        places = [order.locate(i) for i in range(3000)]
        for name, count in planned.items():
            latest = max(place.epoch for place in places if place.source == name)
            assert latest <= count * 1.01 and count < latest + 1.02, name


def test_order_gives_the_window_it_locates(mixed, data, other):
    order = windows(mixed, 0, CONTEXT)
    for i in range(20):
        place = order.locate(i)
        folder = {"texts": data, "other": other}[place.source].folder
        shards = sorted(map(str, folder.glob("train-*")))
        record = ArrayRecordDataSource(shards)[place.window]
        assert (order[i] == np.frombuffer(record, "<u2")).all()


def test_seeds_and_sources_are_shuffled_differently(data, one):
    twice = Data((Source("a", str(data.folder)), Source("b", str(data.folder))))
    order = windows(twice, 0, CONTEXT)
    places = [order.locate(i) for i in range(200)]
    a, b = ([p.window for p in places if p.source == name] for name in "ab")
    assert a != b
    first, second = windows(one, 0, CONTEXT), windows(one, 1, CONTEXT)
    assert [first.locate(i) for i in range(50)] != [second.locate(i) for i in range(50)]


def test_held_out_windows_are_the_first_by_share(mixed, data, other):
    found = held_out(mixed, 8, CONTEXT)
    assert found.windows.shape == (8, CONTEXT + 1) and found.windows.dtype == np.int32
    assert (found.windows == held_out(mixed, 8, CONTEXT).windows).all()
    alone = held_out(Data(mixed.sources[1:]), 2, CONTEXT)
    assert (found.windows[6:] == alone.windows).all()
    assert found.available == data.validation_windows + other.validation_windows


@pytest.mark.parametrize("more", [0, 1, 10**6])
def test_all_held_out_windows_are_those_of_every_source(data, other, more):
    """Though the second source has fewer than its share."""
    uneven = Data((Source("a", str(data.folder), 0.01), Source("b", str(other.folder), 0.99)))
    every = data.validation_windows + other.validation_windows
    found = held_out(uneven, more and every + more - 1, CONTEXT)
    assert len(found) == found.available == every


def test_no_validation_is_refused(folder, tmp_path):
    settings = {"context": CONTEXT, "vocabulary": 300, "validation_fraction": 0, "workers": 1}
    prepare(str(folder), str(tmp_path / "out"), **settings)
    with pytest.raises(ConfigError, match="nothing was held out"):
        held_out(Data((Source("a", str(tmp_path / "out")),)), 4, CONTEXT)


def test_identity_changes_with_what_decides_the_order(mixed, one, data, other):
    base = identity(mixed, 0, CONTEXT)
    assert base == identity(mixed, 0, CONTEXT)
    doubled = Data(tuple(Source(s.name, s.path, s.weight * 2) for s in mixed.sources))
    assert identity(doubled, 0, CONTEXT) == base
    reweighed = Data((mixed.sources[0], Source("other", str(other.folder), 2)))
    renamed = Data((mixed.sources[0], Source("third", str(other.folder), 1)))
    different = [identity(mixed, 1, CONTEXT), identity(reweighed, 0, CONTEXT),
                 identity(renamed, 0, CONTEXT), identity(one, 0, CONTEXT)]  # fmt: skip
    assert base not in different


def test_wrong_context_says_both_numbers_and_the_command(one):
    with pytest.raises(ConfigError, match=r"context 32, the model 64.*prepare .*--context 64"):
        windows(one, 0, 64)


def test_different_tokenizers_are_refused(one, folder, tmp_path):
    prepare(str(folder), str(tmp_path / "out"), context=CONTEXT, vocabulary=310)
    with pytest.raises(ConfigError, match="ids would not mean the same.*--tokenizer"):
        identity(Data((*one.sources, Source("b", str(tmp_path / "out")))), 0, CONTEXT)


def copy_of(data, folder, **change):
    for path in data.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    dataclasses.replace(data, folder=folder, **change).write()
    return Data((Source("copy", str(folder)),))


def test_id_outside_the_vocabulary_names_source_and_window(data, tmp_path):
    order = windows(copy_of(data, tmp_path, vocabulary=200), 0, CONTEXT)
    with pytest.raises(ConfigError, match=r"window \d+ of data 'copy' is damaged"):
        for i in range(data.train_windows):
            order[i]


def test_truncated_shard_is_refused_at_once(data, tmp_path):
    broken = copy_of(data, tmp_path)
    shard = tmp_path / data.train.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="missing or has another size"):
        windows(broken, 0, CONTEXT)


def test_error_in_a_thread_reaches_the_caller(data, tmp_path):
    order = windows(copy_of(data, tmp_path, vocabulary=2), 0, CONTEXT)
    with pytest.raises(ConfigError, match="is damaged"):
        take(order, 1)


def test_closing_ends_the_threads_and_exit_does_not_hang(one):
    spans = Microbatches([(8, 2**40)], 8, 0)
    iterator = batches(windows(one, 0, CONTEXT), spans, range(8), CONTEXT + 1)
    before = set(threading.enumerate())
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    code = (
        "from gpt3jax.config import *; from gpt3jax.data.loader import *\n"
        "from gpt3jax.train.schedules import Microbatches\n"
        f"order = windows(Data((Source('a', {one.sources[0].path!r}),)), 0, 32)\n"
        "iterator = batches(order, Microbatches([(8, 9)] * 99, 8, 0), range(8), 33); next(iterator)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_data_package_does_not_import_jax():
    code = (
        "import sys, gpt3jax.data.loader, gpt3jax.data.prepare.prepare\n"
        "assert not {'jax', 'grain', 'pyarrow', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
