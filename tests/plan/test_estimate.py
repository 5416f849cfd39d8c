"""The arithmetic of plan: against published training runs, the article, and itself."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from gpt3jax.config import Data, Experiment, Model, Schedule, Source, Train
from gpt3jax.errors import ConfigError
from gpt3jax.plan import budget, flags, show
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.planner import plan, too_big
from gpt3jax.plan.slices import parse
from gpt3jax.runtime.chips import CHIPS, chip_of, peak_flops
from gpt3jax.sharding.legal_meshes import meshes
from gpt3jax.user_code import load_experiment


def gpt(layers, width, heads, head_width, vocabulary, batch):
    """A dense GPT of another code base, as an experiment."""
    return Experiment(
        name="published",
        model=Model(
            layers, width, heads, head_width, vocabulary=vocabulary, dense_every=1,
            free_head_width=True,
        ),
        data=Data((Source("any", "any"),)),
        schedule=Schedule(1e-4),
        train=Train(batch_tokens=batch * 2048),
    )  # fmt: skip


def of_size(size):
    return load_experiment(f"experiments/gpt3_{size}.py")


MOSAIC, V = "mosaicml/llm-foundry, scripts/train/benchmarking/README.md, 2024-01", 50368
MAXTEXT = "MaxText, README of 2023-04 (TPU v4, FLOPs of 6 N)"
RECIPES = "AI-Hypercomputer/tpu-recipes, training/trillium/GPT3-175B-MaxText/bf16, 2025"

# Model, chips, remat, windows per forward pass, published tokens/s per chip, source.
PUBLISHED = [
    (gpt(24, 1024, 16, 64, V, 512), "a100:8", "none", 256, 58782, MOSAIC),
    (gpt(24, 1536, 12, 128, V, 384), "a100:8", "none", 192, 32434, MOSAIC),
    (gpt(24, 2048, 16, 128, V, 448), "a100:8", "none", 112, 20513, MOSAIC),
    (gpt(32, 2560, 20, 128, V, 160), "a100:8", "none", 80, 10811, MOSAIC),
    (gpt(32, 4096, 32, 128, V, 96), "a100:8", "none", 48, 4641, MOSAIC),
    (gpt(40, 5120, 40, 128, V, 48), "a100:8", "none", 16, 2262, MOSAIC),
    (gpt(48, 7168, 56, 128, V, 504), "a100:8", "full", 24, 916, MOSAIC),
    (gpt(80, 8192, 64, 128, V, 2048), "a100:64", "full", 512, 410, MOSAIC),
    (gpt(24, 2048, 16, 128, V, 112), "h100:8", "none", 112, 45455, MOSAIC),
    (gpt(32, 4096, 32, 128, V, 48), "h100:8", "none", 48, 10643, MOSAIC),
    (gpt(32, 4096, 32, 128, V, 768), "h100:128", "none", 768, 10475, MOSAIC),
    (gpt(40, 5120, 40, 128, V, 2048), "h100:128", "full", 2048, 5080, MOSAIC),
    (gpt(48, 7168, 56, 128, V, 1024), "h100:128", "full", 1024, 2199, MOSAIC),
    (gpt(96, 12288, 96, 128, 50304, 768), "v6e:16x16", "full", 768, 357.6, RECIPES),
    (gpt(48, 6144, 24, 256, 32768, 832), "v4:4x4x4", "full", 832, 156e12 / 6 / 21.9e9, MAXTEXT),
    (gpt(32, 12288, 32, 256, 32768, 1344), "v4:4x4x12", "full", 1344, 154e12 / 6 / 51.9e9, MAXTEXT),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[1]} {row[0].model.d_model}")
def test_estimates_are_within_15_percent_of_published_runs(row):
    experiment, chips, remat, microbatch, published, _ = row
    slice = parse(chips)
    found = Estimate(experiment, Layout(1, slice.chips, 1, remat, microbatch), slice)
    assert found.tokens_per_s / slice.chips == pytest.approx(published, rel=0.15)


# Size, windows, measured ms of a step in bfloat16 on one H200, all layers dense, unrolled.
MEASURED = [("125m", 16, 70.2), ("1b3", 8, 266.3), ("2b7", 4, 276.3)]


@pytest.mark.parametrize(("size", "windows", "milliseconds"), MEASURED)
def test_estimates_are_within_10_percent_of_our_own_steps(size, windows, milliseconds):
    """docs/benchmarks.md, "GPUs, measured"."""
    full = of_size(size)
    experiment = dataclasses.replace(
        full,
        model=dataclasses.replace(full.model, dense_every=1),
        train=Train(batch_tokens=windows * 2048),
    )
    found = Estimate(experiment, Layout(1, 1, 1, "none", windows), parse("h200:1"))
    assert found.step_s * 1e3 == pytest.approx(milliseconds, rel=0.10)


def test_reduce_scatter_over_a_2d_torus_sends_twice_the_bytes():
    """As libtpu makes it; weights are fetched twice in a step, and gradients summed once."""
    layout = Layout(1, 64, 1, "full", 512)
    flat, cube = (Estimate(of_size("1b3"), layout, parse(c)) for c in ("v5e:8x8", "v5p:4x4x4"))
    assert flat.wire["weights"] == pytest.approx(cube.wire["weights"] * 4 / 3)
    on_one_axis = Estimate(of_size("1b3"), Layout(8, 8, 1, "full", 512), parse("v5e:8x8"))
    assert on_one_axis.wire["weights"] / (7 / 8) == pytest.approx(cube.wire["weights"] / (63 / 64))


def test_gpu_years_and_dollars_match_the_article():
    years, dollars = show.article(of_size("175b"))
    assert f"{years:,.0f}" == "355"
    assert years == pytest.approx(3.14e23 / 28e12 / (365.25 * 24 * 3600))
    assert dollars == pytest.approx(4.6e6, rel=0.01)


def test_flops_match_table_d_1():
    for size, flops in {"125m": 2.25e20, "2b7": 4.77e21, "13b": 2.31e22, "175b": 3.14e23}.items():
        experiment = of_size(size)
        total = 6 * show.count_params(experiment.model) * experiment.train.tokens
        assert total == pytest.approx(flops, rel=0.01)


def test_every_layout_is_legal_and_the_best_is_the_fastest_that_fits():
    experiment = of_size("13b")
    slice = parse("v5e:16x16")
    found = plan(experiment, slice)
    assert found.fitting and found.others
    for each in found.fitting:
        at, model = each.layout, experiment.model
        assert at.data * at.fsdp * at.tensor == 256
        assert experiment.batch_sequences % at.microbatch == 0 == at.microbatch % at.rows
        assert model.n_heads % at.tensor == 0 == model.d_model % at.fsdp
        assert each.peak_bytes <= each.budget_bytes
        assert each.step_s >= found.best.step_s
    assert all(each.peak_bytes > each.budget_bytes for each in found.others)


def test_finalists_start_with_the_best_and_differ_in_mesh_or_remat():
    found = plan(of_size("6b7"), parse("v5p:4x4x4"))
    finalists = found.shortlist(3)
    assert finalists[0] == found.best and len(finalists) == 3
    kinds = {(e.layout.data, e.layout.fsdp, e.layout.tensor, e.layout.remat) for e in finalists}
    assert len(kinds) == 3


def test_slices_lie_along_data_and_cost_time():
    experiment = of_size("6b7")
    one, four = parse("v5e:16x16"), parse("v5e:16x16*4")
    assert all(data % 4 == 0 for data, _, _ in meshes(experiment, four.devices, 4))
    together = plan(experiment, four).best
    assert together.seconds["replicas"] > plan(experiment, one).best.seconds["replicas"]


def test_more_recomputation_needs_less_memory_and_more_flops():
    experiment, slice = of_size("6b7"), parse("v5p:4x4x4")
    by_policy = [
        Estimate(experiment, Layout(1, 64, 1, remat, 256), slice)
        for remat in ("none", "dots", "mlp", "full")
    ]
    memory = [each.peak_bytes for each in by_policy]
    work = [sum(each.flops.values()) for each in by_policy]
    assert memory == sorted(memory, reverse=True) and len(set(memory)) == 4
    assert work == sorted(work)


def test_an_error_for_too_large_models_lists_three_remedies():
    found = plan(of_size("175b"), parse("v5e:4x4"))
    with pytest.raises(ConfigError) as refused:
        _ = found.best
    words = str(refused.value)
    assert "does not fit on v5e:4x4" in words and "optimizer" in words
    assert words.count(" saves ") == 3
    assert too_big(found.others[0]) == words


def test_an_indivisible_batch_is_rejected_with_device_counts_that_work():
    with pytest.raises(ConfigError, match="the closest counts that work are"):
        plan(of_size("125m"), parse("h100:7"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5p", "KIND:TOPOLOGY"),
        ("v5q:4x4x4", "Did you mean"),
        ("v5p:4x4", "3 axes"),
        ("h100:8x8", "takes a count"),
        ("v5e:0x4", "no chips"),
        ("v5e:32x32", "at most 256"),
    ],
)
def test_invalid_chips_are_rejected(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text)


def test_chips_are_found_by_their_jax_device_kind():
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU7x": "v7x", "NVIDIA H100 80GB HBM3": "h100"}
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("cpu") is None and peak_flops("TPU7x") == CHIPS["v7x"].peak / 2
    assert parse("v5p:8x8x16").accelerator_type == "v5p-2048"
    assert parse("v5e:16x16").accelerator_type == "v5litepod-256"


def test_budgets_match_the_scaling_laws():
    best = budget.best_by_chinchilla(5.76e23)  # Chinchilla's own compute: about 70B and 1.4T.
    # By their parametric fit, which their paper says favours smaller models.
    assert 3e10 < best.parameters < 8e10
    for factor in (0.9, 1.1):
        other = best.parameters * factor
        assert budget.chinchilla_loss(other, 5.76e23 / 6 / other) > best.loss
    assert budget.best_by_paper(3640 * budget.PF_DAY).loss == pytest.approx(1.734, abs=1e-3)


def test_plan_json_has_the_documented_keys(capsys):
    show.show(plan(of_size("175b"), parse("v5p:8x8x16")), None, [], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 174_604_259_328
    for key in ("estimated_peak_bytes", "step_s", "mfu", "tokens_per_s", "days", "dollars"):
        assert found[key] > 0
    assert "--accelerator-type v5p-2048" in found["launch"]
    assert len(found["flags"]) == 5 and all(flag["why"] for flag in found["flags"])


@pytest.mark.parametrize(
    ("chips", "count", "variable"),
    [("v5e:16x16", 0, ""), ("v5p:4x4x8", 5, "LIBTPU_INIT_ARGS"), ("h100:64", 2, "XLA_FLAGS"),
     ("v5p:4x4x4*2", 7, "LIBTPU_INIT_ARGS")],
)  # fmt: skip
def test_recommended_flags_have_reasons(chips, count, variable, capsys):
    found = plan(of_size("13b"), parse(chips))
    show.show(found, None, [], as_json=False)
    _, _, said = capsys.readouterr().out.partition("flags   ")
    assert said.count("xla_") == 2 * count and said.startswith(f"export {variable}"[: 99 * count])


def test_xla_knows_the_flags_for_gpus():
    """It ends a process that has one it does not know, also on a CPU."""
    words = " ".join(flag.flag for flag in flags.GPU)
    for asked, code in ((words, 0), (words.replace("pipelined", "unheard_of"), 1)):
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": asked},
        )  # fmt: skip
        assert bool(done.returncode) == bool(code), done.stderr[-300:]


def test_frozen_parameters_have_no_gradients_or_moments():
    whole = of_size("13b")
    lora = dataclasses.replace(whole, model=dataclasses.replace(whole.model, lora_rank=8))
    layout, slice_ = Layout(1, 8, 1, "full", 1024), parse("v5p:2x2x2")
    before, after = (Estimate(each, layout, slice_).memory for each in (whole, lora))
    # Per layer 8 x (5120 + 3 x 5120) for qkv and 8 x (5120 + 5120) for out; in 8 parts but for
    # the heads' side of each, which `fsdp` does not split.
    factors = 40 * 8 * ((5120 / 8 + 3 * 5120) + (5120 + 5120 / 8))
    assert after["optimizer"] == 8 * factors and after["gradients"] == 2 * factors
    assert after["parameters"] == before["parameters"] + 4 * factors
    assert before["optimizer"] == 2 * before["parameters"]


@pytest.mark.parametrize(
    ("size", "chips", "dtype", "advice"),
    [
        ("1b3", "h200:1", "auto", "1.16"), ("2b7", "h100:8", "bfloat16", "1.13"),
        ("125m", "h200:1", "float8", "slower"), ("125m", "h200:1", "auto", ""),
        ("1b3", "h200:1", "float8", ""), ("1b3", "a100:8", "auto", ""),
        ("760m", "h200:1", "auto", ""), ("1b3", "v5p:4x4x4", "auto", ""),
    ],
)  # fmt: skip
def test_float8_is_advised_where_it_was_measured_to_gain(size, chips, dtype, advice):
    experiment = load_experiment(f"experiments/gpt3_{size}.py")
    model = dataclasses.replace(experiment.model, dtype=dtype)
    best = plan(dataclasses.replace(experiment, model=model), parse(chips), ()).best
    found = show.float8_advice(best)
    assert advice in found and bool(found) == bool(advice)
