"""What `gpt3jax bench` prints: the floor of each figure, and how far above it we are."""

from unittest import mock

import pytest
from building import changed

from gpt3jax.model.param_specs import count_params, flops_per_token
from gpt3jax.plan import bench

RATE = 1e9
BANDWIDTH_LIMIT = bench.bandwidth_limit


@pytest.fixture(autouse=True)
def slow_machine(one_device, monkeypatch, tmp_path):
    """Whose products and memory are at a thousand million a second, exactly."""
    monkeypatch.chdir(tmp_path)
    with (
        mock.patch.object(bench, "peak_limit", lambda: bench.Limit("a pretended peak", RATE)),
        mock.patch.object(bench, "bandwidth_limit", lambda: bench.Limit("pretended", RATE)),
    ):
        yield


def test_the_floor_of_a_step_is_its_matrix_products(experiment):
    found = bench.bench_train(experiment, 2)
    flops = flops_per_token(experiment.model) * experiment.train.batch_tokens
    assert found["floor_s"] == pytest.approx(flops / RATE)
    assert found["over_floor"] == pytest.approx(found["step_s"] / found["floor_s"])
    assert found["mfu"] == pytest.approx(1 / found["over_floor"])


def test_the_floor_of_decoding_is_reading_the_weights(experiment):
    found, model = bench.bench_decode(experiment, 2), experiment.model
    padding = (model.padded_vocabulary - model.vocabulary) * model.d_model
    size = 4 * (count_params(model) + padding)
    # A factor for each output beside the values: its rows are 8 to 128 numbers long here.
    assert size < found["full"]["floor_s"] * RATE < 1.1 * size
    assert 0.25 * size < found["int8"]["floor_s"] * RATE < 0.5 * size
    for weights in ("full", "bfloat16", "int8"):
        of = found[weights]
        assert of["over_floor"] == pytest.approx(1 / of["tokens_per_s"] / of["floor_s"])


def test_the_floors_of_loading_and_saving_are_their_bytes(experiment):
    found = bench.bench_data(changed(experiment, train={"microbatch": 2}), 2)
    tokens = bench.BATCHES * 2 * experiment.model.context
    assert found["floor_s"] == pytest.approx(4 * tokens / RATE)
    saved = bench.bench_save(experiment, 2)
    assert saved["floor_s"] == pytest.approx(saved["bytes"] / RATE)
    assert saved["stall_s"] < saved["save_s"]


def test_a_measured_limit_is_the_best_of_all_turns(monkeypatch):
    """On a busy machine a rate that is measured once, at another time, may be any."""
    readings = [0, 0, 4, 0, 2, 0, 3]  # A warm-up, then three of the limit; and a second turn.
    clock = iter([*readings, 0, 8, 0, 3, 0, 1, 0, 2])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    limit = bench.Limit("products", 12, lambda: None)
    assert bench._medians({"work": lambda: None}, 1, limit) == {"work": 8}
    assert limit.seconds == [4, 2, 3, 3, 1, 2] and limit.rate == 12


def test_what_is_faster_than_its_floor_says_that_it_cannot_be_trusted(experiment, monkeypatch):
    assert "not_trusted" not in bench._over_floor(2.0, 1.0)
    monkeypatch.setattr(bench, "peak_limit", lambda: bench.Limit("too low", 1.0))
    found = bench.bench_train(experiment, 1)
    assert found["over_floor"] < 1 and "measured too low" in found["not_trusted"]


def test_on_an_accelerator_bandwidth_is_that_of_a_copy_beside_the_published_one(monkeypatch):
    monkeypatch.setattr(bench, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(bench.jax, "default_backend", lambda: "gpu")
    limit = BANDWIDTH_LIMIT()
    assert limit.amount == 2 << 20 and limit.work().nbytes == 1 << 20
    kind = mock.Mock(device_kind="NVIDIA H200")
    monkeypatch.setattr(bench.jax, "devices", lambda *_: [kind])
    assert bench._bandwidth(bench.Limit("", 4.32e12)) == {
        "read_bytes_per_s": 4.32e12, "read_of_published": pytest.approx(0.9),
    }  # fmt: skip


def test_every_measured_figure_is_printed_with_its_unit(experiment, capsys):
    small = changed(experiment, train={"microbatch": 2})
    found = bench.bench_data(small, 1)
    with mock.patch.object(bench, "bench_data", lambda *_: found):
        bench.bench("data", small, 1, as_json=False)
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert shown["tokens_per_s"][1:] == ["tokens/s"]
    assert shown["floor_s"][1:] == ["s"]
    assert shown["over_floor"][1:] == ["times", "the", "floor"]
    assert shown["batch_sequences"] == ["2", "windows"]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("step_s", "s"), ("model_flops_per_s", "FLOP/s"), ("read_bytes_per_s", "bytes/s"),
        ("bytes", "bytes"), ("full: tokens_per_s", "tokens/s"), ("hash_share", "of a save"),
        ("mfu", "of the peak"), ("int8: first_token_over_floor", "times the floor"),
        ("new_tokens", "tokens"), ("devices", None),
    ],
)  # fmt: skip
def test_the_unit_of_a_figure_follows_from_its_name(name, unit):
    assert next((of for end, of in bench.UNITS.items() if name.endswith(end)), None) == unit
