"""`--profile`: the trace holds the steps that were asked for, and the table says what it says."""

import json
from pathlib import Path

import jax
import pytest
from building import changed
from jax.profiler import ProfileData

from gpt3jax.cli import main
from gpt3jax.errors import ConfigError
from gpt3jax.plan import bench
from gpt3jax.plan.profile import OTHER, sum_up
from gpt3jax.runtime.chips import CHIPS
from gpt3jax.train.monitor import profile

LOOPS = ("while", "cond", "call")
PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

ENTRY %main (p: bf16[16,8]) -> bf16[16,32] {
  %x = bf16[16,8]{1,0} parameter(0)
  %w = bf16[8,32]{1,0} parameter(1)
  %product.1 = bf16[16,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}, metadata={op_name="jit(train_step)/jvp(mlp)/dot_general"}
  ROOT %copy.2 = bf16[16,32]{1,0} copy(%product.1)
}
"""  # noqa: E501


@pytest.fixture
def file(experiment, tmp_path, monkeypatch, one_device):
    """An experiment file in the current folder: two layers, 6 steps of two microbatches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    small = changed(
        experiment, train={"steps": 6, "microbatch": 4},
        evaluate={"sample_tokens": 0},
    )  # fmt: skip
    (tmp_path / "small.py").write_text(
        "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
        f"    return Experiment.from_json({small.to_json()!r})\n"
    )
    return "small.py"


def read(folder, module):
    """Numbers of the annotated steps in a trace; runs of the program; (count, ns) of its kernels.

    A kernel runs until its own event ends or the event `end: NAME` begins, on another thread.
    """
    (path,) = Path(folder).rglob("*.xplane.pb")
    events = [
        (event, dict(event.stats))
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
    ]
    steps = sorted(of["step_num"] for _, of in events if "step_num" in of)
    late = {of["_c"]: event.start_ns for event, of in events if event.name.startswith("end: ")}
    ran = [(event, of) for event, of in events if of.get("hlo_module") == module]
    kernels = [
        max(event.duration_ns, late.get(of["_p"], 0) - event.start_ns)
        for event, of in ran
        if not of["hlo_op"].startswith(LOOPS)
    ]
    return steps, {of["run_id"] for _, of in ran}, (len(kernels), sum(kernels))


def test_a_trace_of_training_holds_the_steps_that_were_asked_for(file, tmp_path, capsys):
    assert main(["train", file, "--run", "run", "--profile", "3:5"]) == 0
    out = capsys.readouterr().out
    steps, runs, (count, ns) = read("run/profile/3-5", "jit_train_step")
    assert (steps, len(runs)) == ([3, 4, 5], 3)
    assert "3 steps traced" in out and "run/profile/3-5" in out
    assert " mlp backward " in out and " unembed forward " in out and OTHER[0] not in out
    (total,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["all"]]
    assert float(total[-2].replace(",", "")) == pytest.approx(count / 3, rel=0.005)
    assert float(total[-1].replace(",", "")) == pytest.approx(ns / 3 / 1e6, rel=0.005)
    assert main(["train", file, "--run", "run", "--train.steps", "8", "--profile", "6:7"]) == 2
    assert capsys.readouterr().err == (
        "error: --profile 6:7: the run is at step 6 already. Name steps from 7 on, or leave "
        "--profile out\n"
    )


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ("4", "expected the first and the last step"), ("5:3", "expected the first and"),
        ("0:3", "expected the first and the last step"), ("3:x", "expected the first and"),
        ("5:7", "the run ends before step 7"), ("", "expected the first"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_traced_are_refused_before_there_is_a_run(steps, error, file, capsys):
    assert main(["train", file, "--run", "run", "--profile", steps]) == 2
    err = capsys.readouterr().err
    assert err.startswith((f"error: --profile {steps}", "error: --profile is"))
    assert error in err and err.count("\n") == 1 and not Path("run").exists()


def test_an_older_trace_is_not_overwritten_and_one_that_is_cut_short_says_so(tmp_path):
    for name in ("3-9", "3-9.2", "3-9.3"):
        trace = profile.StepTrace(3, 9, lambda trace: "")
        trace.begin(2, jax.numpy.ones(1), tmp_path)
        assert trace.folder == Path() and not trace.ends_at(9)
        trace.begin(3, jax.numpy.ones(1), tmp_path)
        assert trace.folder == tmp_path / name and trace.ends_at(9) and not trace.ends_at(8)
        assert f"after step 4: {tmp_path / name} has the steps up to there" in trace.close(4)
    assert "after step 1: no trace" in profile.StepTrace(3, 9, lambda trace: "").close(1)
    with pytest.raises(ConfigError, match="at step 3 already. Name steps from 4 on"):
        profile.StepTrace(3, 9, lambda trace: "").check(3)


@pytest.mark.parametrize(
    ("what", "module", "steps"), [("train", "train_step", 5), ("decode", "write", 22)]
)
@pytest.mark.in_ci("train*")
def test_a_trace_of_a_benchmark_is_summed_up_in_its_json(
    file, what, module, steps, capsys, monkeypatch
):
    monkeypatch.setattr(bench, f"bench_{what}", lambda *_: {})
    words = ["bench", what, file, "--repeats", "1", "--model.n-layers", "1", "--profile", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["profile"]
    numbers, ran, (count, ns) = read(found["folder"], f"jit_{module}")
    assert found["folder"] == f"profiles/test-{what}"
    assert numbers == list(range(steps)) and found["steps"] == steps
    assert len(ran) == steps if what == "train" else 1 <= len(ran) <= steps  # One for a chunk.
    of_step = [row for row in found["kernel_table"] if row["part"] != OTHER[0]]
    assert sum(row["measured_count"] for row in of_step) == pytest.approx(count / steps)
    assert sum(row["measured_s"] for row in of_step) == pytest.approx(ns / steps / 1e9)
    assert 0 < found["covered"] <= 1 and found["kernel_s"] is None
    assert all(row["seconds"] is None for row in of_step), "a CPU's rates are not known"


def test_what_has_no_steps_has_no_trace(file, capsys):
    assert main(["bench", "data", file, "--profile"]) == 2
    assert "traces steps, and data has none" in capsys.readouterr().err


def traced(tmp_path, lines):
    """The sums of a trace of two steps on an H200: lines of (plane, line, [(operation, stats)])."""
    ids, names, text = {}, {}, ""

    def number(of, name):
        return of.setdefault(name, len(of) + 1)

    for plane, line, events in lines:
        text += f'planes {{ name: "{plane}" lines {{ name: "{line}" timestamp_ns: 0\n'
        for name, start, end, stats in events:
            text += (
                f"events {{ metadata_id: {number(names, name)} offset_ps: {start * 1000} "
                f"duration_ps: {(end - start) * 1000}\n"
            )
            for key, value in stats.items():
                text += f'stats {{ metadata_id: {number(ids, key)} str_value: "{value}" }}\n'
            text += "}\n"
        text += "}\n"
        for name, key in names.items():
            text += f'event_metadata {{ key: {key} value {{ id: {key} name: "{name}" }} }}\n'
        for name, key in ids.items():
            text += f'stat_metadata {{ key: {key} value {{ id: {key} name: "{name}" }} }}\n'
        text += "}\n"
    (tmp_path / "host.xplane.pb").write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
    return sum_up(profile.Trace(tmp_path, PROGRAM), CHIPS["h200"])


STEPS = ("/host:CPU", "python", [("train", 0, 10, {}), ("train", 100, 110, {})])


def of(operation, module="jit_train_step"):
    return {"hlo_op": operation, "hlo_module": module}


def test_on_gpus_kernels_are_joined_by_operation_and_the_rest_is_named(tmp_path):
    """Two devices; events of a GPU have the kernel's name, and the operation beside it."""
    streams = [
        (f"/device:GPU:{n}", "Stream #7(Compute)", [
            ("ampere_gemm", 20, 60, of("product.1")), ("loop_copy", 60, 70, of("copy.2")),
            ("ampere_gemm", 120, 160 + n, of("product.1")), ("loop_copy", 150, 170, of("copy.2")),
            ("other", 170, 180, of("product.1", "jit_evaluate")), ("MemcpyD2H", 180, 200, {}),
        ]) for n in (0, 1)
    ]  # fmt: skip
    repeated = ("/device:GPU:0", "XLA Modules", [("jit_train_step", 0, 200, {})])
    found = traced(tmp_path, [STEPS, *streams, repeated])
    assert (found.steps, found.step_s) == (2, pytest.approx(100e-9))
    rows = {(row.kernel.part, row.kernel.work): row for row in found.kernels}
    product, copy, rest = (
        rows.pop(key) for key in (("mlp forward", "product"), ("other", "copy"), OTHER)
    )
    assert not rows
    assert (product.count, product.seconds) == (1, pytest.approx(40.25e-9))
    assert (copy.count, copy.seconds) == (1, pytest.approx(15e-9))
    assert (rest.count, rest.seconds) == (1, pytest.approx(15e-9))
    assert product.kernel.flops == 2 * 16 * 8 * 32 and product.kernel.seconds > 0
    assert found.covered == pytest.approx((50 + 50) / 200), "what overlaps counts once"


def test_in_a_cuda_graph_fusions_are_joined_by_the_name_of_their_kernel(tmp_path):
    """Their events have no operation; kernels of libraries have names of their own."""
    stream = ("/device:GPU:0", "Stream #7(Compute)", [
        ("product_1", 20, 60, {}), ("copy_2", 60, 70, {}), ("nvjet_tst", 70, 80, {}),
    ])  # fmt: skip
    found = traced(tmp_path, [STEPS, stream])
    rows = {(row.kernel.part, row.kernel.work): row.seconds for row in found.kernels}
    assert rows == {
        ("mlp forward", "product"): pytest.approx(20e-9), ("other", "copy"): pytest.approx(5e-9),
        OTHER: pytest.approx(5e-9),
    }  # fmt: skip


def test_on_tpus_operations_are_named_by_their_text(tmp_path):
    line = [
        ("%product.1 = bf16[16,32]{1,0} dot(%x, %w)", 20, 60, {}),
        ("%copy.2 = x", 170, 200, {}),
    ]
    repeated = ("/device:TPU:0", "Steps", [("3", 0, 200, {})])
    found = traced(tmp_path, [STEPS, ("/device:TPU:0", "XLA Ops", line), repeated])
    assert [(row.kernel.work, row.seconds * 1e9) for row in found.kernels] == [
        ("product", pytest.approx(20)), ("copy", pytest.approx(15)),
    ]  # fmt: skip
    assert found.covered == pytest.approx(70 / 200)
