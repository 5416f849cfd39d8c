# ruff: noqa: E501
"""The table of a compiled step's kernels, on a program whose FLOPs and bytes are counted by hand."""

import pytest

from gpt3jax.plan.kernels import RATES, kernel_table, total_seconds
from gpt3jax.runtime.chips import CHIPS

PROGRAM = """\
%sliced (p: bf16[12,64,8], q: bf16[64,8]) -> bf16[64,8] {
  %p.1 = bf16[12,64,8]{2,1,0} parameter(0)
  %q.1 = bf16[64,8]{1,0} parameter(1)
  %cut.1 = bf16[1,64,8]{2,1,0} dynamic-slice(%p.1, %i), dynamic_slice_sizes={1,64,8}
  ROOT %sum.1 = bf16[64,8]{1,0} add(%cut.1, %q.1)
}

%updated (p: f32[100,8], q: f32[1,8]) -> f32[100,8] {
  %p.2 = f32[100,8]{1,0} parameter(0)
  %q.2 = f32[1,8]{1,0} parameter(1)
  ROOT %update.1 = f32[100,8]{1,0} dynamic-update-slice(%p.2, %q.2, %i, %j)
}

%body (state: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %state = (s32[], bf16[16,8]{1,0}) parameter(0)
  %x = bf16[16,8]{1,0} get-tuple-element(%state), index=1
  %w = bf16[8,32]{1,0} get-tuple-element(%state), index=2
  %product.1 = (bf16[16,32]{1,0}, s8[33554432]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(train_step)/jvp(mlp)/dot_general"}, backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}
  ROOT %tuple = (s32[], bf16[16,8]{1,0}) tuple(%i, %x)
}

%condition (state: (s32[], bf16[16,8])) -> pred[] {
  %constant.5 = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %constant.5), direction=LT
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %stack = bf16[12,64,8]{2,1,0} parameter(0)
  %one = bf16[64,8]{1,0} parameter(1)
  %table = f32[100,8]{1,0} parameter(2)
  %row = f32[1,8]{1,0} parameter(3)
  %while.1 = (s32[], bf16[16,8]{1,0}) while(%t), condition=%condition, body=%body
  %slice_fusion = bf16[64,8]{1,0} fusion(%stack, %one), kind=kLoop, calls=%sliced, metadata={op_name="jit(train_step)/transpose(jvp(attention))/add"}
  %update_fusion = f32[100,8]{1,0} fusion(%table, %row), kind=kLoop, calls=%updated, metadata={op_name="jit(train_step)/jit(_where)/select_n"}
  %attended = (bf16[2,4,64,16]{3,1,2,0}, bf16[2,4,64,16]{3,1,2,0}, u8[0]{0}) custom-call(%q), custom_call_target="__cudnn$fmhaSoftmaxBackward", operand_layout_constraints={bf16[2,64,4,16]{3,2,1,0}}, metadata={op_name="jit(train_step)/transpose(jvp())/checkpoint/attention/bwd"}, backend_config={"sliding_window_length": 8}
  ROOT %r = bf16[64,8]{1,0} copy(%slice_fusion)
}
"""


def test_flops_and_bytes_are_those_that_one_counts_by_hand():
    table = {(each.part, each.work): each for each in kernel_table(PROGRAM, CHIPS["h200"])}
    product = table.pop(("mlp forward", "product"))
    assert (product.count, product.flops) == (3, 3 * 2 * 16 * 32 * 8)
    assert product.bytes == 3 * 2 * (16 * 8 + 8 * 32 + 16 * 32), "no workspace"
    # A slice of the stack, the other operand, and the result; then a row, read and written.
    assert table.pop(("attention backward", "elementwise")).bytes == 3 * 2 * 64 * 8
    assert table.pop(("update", "elementwise")).bytes == 2 * 4 * 8
    attention = table.pop(("attention backward", "attention"))
    pairs = 8 * 9 // 2 + 56 * 8  # Row i of the first eight sees i keys, the others eight.
    assert attention.flops == 5 * 2 * 2 * 4 * 16 * pairs
    assert table.pop(("other", "copy")).bytes == 2 * 2 * 64 * 8
    assert not table


def test_the_time_is_that_of_flops_or_bytes_whichever_is_longer():
    chip = CHIPS["h200"]
    found = kernel_table(PROGRAM, chip)
    by_bytes = next(each for each in found if each.work == "copy")
    assert by_bytes.limit == "bytes"
    assert by_bytes.seconds == pytest.approx(2048 / (chip.hbm_rate * RATES["bytes"]))
    large = PROGRAM.replace("[16,8]", "[16384,8192]").replace("[8,32]", "[8192,8192]")
    large = large.replace("[16,32]", "[16384,8192]")
    product = next(each for each in kernel_table(large, chip) if each.work == "product")
    assert product.limit == "FLOPs"
    flops = 3 * 2 * 16384 * 8192 * 8192
    assert product.seconds == pytest.approx(flops / (chip.peak * RATES["product"]))
    assert total_seconds(found) == pytest.approx(sum(each.seconds for each in found))


@pytest.mark.parametrize(
    "branches",
    ["true_computation=%body, false_computation=%other", "branch_computations={%body, %other}"],
)
def test_of_two_branches_each_is_taken_half_of_the_time(branches):
    """The kernels of a scan over dense and banded layers are in branches."""
    other = PROGRAM[PROGRAM.index("%body") : PROGRAM.index("%condition")].replace("%body", "%other")
    loop = "while(%t), condition=%condition, body=%body"
    assert loop in PROGRAM
    text = other + PROGRAM.replace(loop, f"conditional(%is_dense, %t, %t), {branches}")
    product = next(each for each in kernel_table(text, CHIPS["h200"]) if each.work == "product")
    assert (product.count, product.flops) == (1, 2 * 16 * 32 * 8)


def test_loops_of_unknown_length_use_the_given_trip_count():
    unknown = PROGRAM.replace("%constant.5 = s32[] constant(3)", "%constant.5 = s32[] parameter(1)")
    found = kernel_table(unknown, CHIPS["h200"], dynamic=7)
    assert next(each for each in found if each.work == "product").count == 7
