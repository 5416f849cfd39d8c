"""The train step through XLA's compiler for GPUs, for cards that are not there (make gpu)."""

from importlib.util import find_spec

import pytest
from planning import plan, products_of, sent

from gpt3jax.errors import ConfigError
from gpt3jax.plan import slices
from gpt3jax.plan.aot_compile import compile_step
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.topologies import describe_devices
from gpt3jax.user_code import load_experiment

compiled = pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None,
    reason="NOT CHECKED: the GPU compiler is not installed. `make gpu` installs and runs it",
)

NODES = {
    "125m": "h100:1", "350m": "h100:8", "760m": "h100:8", "1b3": "a100:8", "2b7": "h200:8",
    "6b7": "h100:64", "13b": "b200:64", "175b": "h100:1024",
}  # fmt: skip


@compiled
@pytest.mark.gpu_compiler
@pytest.mark.parametrize("size", NODES)
def test_memory_traffic_and_products_are_as_estimated(size):
    found = plan(f"experiments/gpt3_{size}.py", "--chips", NODES[size])
    estimated, peak = found["estimated_peak_bytes"], found["compiled_peak_bytes"]
    assert estimated == pytest.approx(peak, rel=0.1)
    assert sent(found) == pytest.approx(sum(found["wire_bytes"].values()), rel=0.02)
    # None of these layouts recomputes products; in attention, neither: cuDNN's kernel goes forward
    # once for each layer, or, where layers are scanned, for each kind of layer.
    assert products_of(found) == pytest.approx(1, abs=0.001)
    layers = load_experiment(f"experiments/gpt3_{size}.py").model.n_layers
    assert found["kernels"]["cudnn$fmhaSoftmax"] == (layers if layers <= 32 else 2)
    assert found["scatters"] == []


@compiled
@pytest.mark.gpu_compiler
def test_float8_is_cublas_float8_and_only_embeddings_are_not():
    found = plan("experiments/gpt3_1b3.py", "--chips", "h100:8", "--model.dtype", "float8")
    # Six products of each of 24 layers (queries, keys and values apart), forward, and backward for
    # inputs and weights; beside them the head's three, and the embedding's gradient's two.
    assert found["kernels"]["cublas$lt$matmul$f8"] == 24 * 6 * 3
    assert found["kernels"]["cublas$lt$matmul"] == 5
    assert found["scatters"] == []
    assert products_of(found) == pytest.approx(1, abs=0.001)


@compiled
@pytest.mark.gpu_compiler
@pytest.mark.parametrize(
    "changes",
    [
        ("--model.scan-layers", "False"),
        ("--model.lora-rank", "8"),
        ("--train.only", "token_embedding", "layers[6:12]"),
        ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"),
        ("--model.dtype", "float32"),
        ("--train.noise-scale", "True", "--train.microbatch", "16"),
    ],
    ids=lambda changes: changes[0].strip("-"),
)
def test_no_step_writes_by_atomics(changes):
    """Bits would differ from run to run: every float is summed in a fixed order."""
    found = plan("experiments/gpt3_125m.py", "--chips", "h100:8", *changes)
    assert found["scatters"] == []


@compiled
@pytest.mark.gpu_compiler
def test_what_does_not_fit_is_said_in_words():
    """The compiler for GPUs refuses nothing: the peak of what it made is compared with the card.
    `plan` would not come so far with this layout, whose estimate is too large already."""
    layout = Layout(data=1, fsdp=8, tensor=1, remat="none", microbatch=64)
    experiment = load_experiment("experiments/gpt3_13b.py")
    why = "the compiled step needs 1[0-9][0-9].* GiB, but the device has 73.30 GiB.* saves "
    with pytest.raises(ConfigError, match=why):
        compile_step(Estimate(experiment, layout, slices.parse("h100:8")))


@pytest.mark.parametrize(
    ("chips", "why"),
    [("v100:8", "no compiler for v100.*h100"), ("h100:12", "complete nodes.*h100:16")],
)
def test_what_no_compiler_knows_is_refused(chips, why):
    with pytest.raises(ConfigError, match=why):
        describe_devices(slices.parse(chips))


@compiled
@pytest.mark.gpu_compiler
def test_what_is_read_and_written_outside_products_and_attention():
    """Of two layers of GPT-3 Small, 16 windows: logits in bfloat16, and q, k and v not sliced."""
    found = plan(
        "experiments/gpt3_125m.py", "--chips", "h200:1", "--kernels", "--keep", "remat",
        "microbatch", "--model.n-layers", "2", "--model.dense-every", "1",
        "--train.batch-tokens", "32768", "--train.microbatch", "16",
    )  # fmt: skip
    other = [each for each in found["kernel_table"] if each["work"] in ("elementwise", "copy")]
    assert 15e9 < sum(each["bytes"] for each in other) < 19.8e9
