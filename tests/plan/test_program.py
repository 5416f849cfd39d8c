# ruff: noqa: E501
"""Collectives read from the compiler's text: loops, chains, fused scatters, shapes."""

import math

import pytest

from gpt3jax.plan.hlo import Collective, collectives, kernels, product_flops, scatters

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %all-reduce.9 = bf16[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[16,8]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,8}
}

%chained (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  ROOT %all-gather.7 = bf16[32]{0} all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="3"}
}

%product (a: bf16[16,8], w: bf16[8,32]) -> bf16[16,32] {
  %a = bf16[16,8]{1,0} parameter(0)
  %w = bf16[8,32]{0,1} parameter(1)
  ROOT %convolution.1 = bf16[16,32]{1,0:T(8,128)(2,1)} convolution(%a, %w), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  %all-gather.1 = bf16[32,4]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %f1 = bf16[32]{0} fusion(%x), kind=kOutput, calls=%chained
  %f2 = bf16[32]{0} fusion(%x), kind=kOutput, calls=%chained
  %c = bf16[16,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%product
  %s = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %collective-permute-start.1 = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %tuple = (s32[], bf16[8,4]{1,0}) tuple(%i, %x)
}

%condition (state: (s32[], bf16[8,4])) -> pred[] {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  %constant.5 = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %constant.5), direction=LT
}

%unknown (state: (s32[], bf16[8,4])) -> pred[] {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %while.1 = (s32[], bf16[8,4]{1,0}) while(%t), condition=%condition, body=%body
  %all-reduce.2 = (f32[10]{0}, /*index=1*/f32[2,5]{1,0}) all-reduce(%a, %b), replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  %left = f32[4,5]{1,0} constant(0)
  %right = f32[6,5]{1,0} constant(0)
  %dot.1 = f32[4,6]{1,0} dot(%left, %right), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %kernel.3 = bf16[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"
  ROOT %r = bf16[8,4]{1,0} copy(%p)
}
"""


def test_collectives_count_trip_counts_and_ring_bytes():
    found = {(each.kind, each.group): each for each in collectives(PROGRAM)}
    gathered = 12 * (32 * 4 * 2 + 32 * 2) * 3 / 4  # Both gathers; the chain once.
    assert found["all-gather", 4] == Collective("all-gather", 4, 24, gathered)
    assert found["reduce-scatter", 4].bytes_sent == 12 * 64 * 8 * 2 * 3 / 4
    assert found["collective-permute", 1].bytes_sent == 12 * 8 * 4 * 2
    assert found["all-reduce", 4].bytes_sent == 2 * (40 + 40) * 3 / 4
    assert kernels(PROGRAM) == {"kernel": 1}


def test_products_are_multiplied_by_trip_counts():
    assert product_flops(PROGRAM) == 12 * 2 * 16 * 32 * 8 + 2 * 4 * 6 * 5
    transposed = PROGRAM.replace("bf_io->bf", "fb_oi->bf").replace(
        "w = bf16[8,32]", "w = bf16[32,8]"
    )
    assert product_flops(transposed) == product_flops(PROGRAM)


@pytest.mark.parametrize(
    ("left", "right", "result", "how", "flops"),
    [
        # As libtpu writes a gradient of weights: summed over windows and tokens.
        ("16,64,8", "16,64,32", "8,32,1", "window={size=16}, dim_labels=0fb_0io->bf0", 16 * 64),
        # And products that keep an axis of the weights: heads, and the three of q, k and v.
        ("1,64,8,1", "1,8,32,4", "1,64,32,4",
         "window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_0io1->0bf1", 8),
        # What lies between spread numbers is nothing: half of the result is not computed.
        ("4,16,8", "1,8,32", "8,16,32",
         "window={size=1 pad=0_1 lhs_dilate=2}, dim_labels=0bf_0io->0bf", 8 / 2),
    ],
)  # fmt: skip
def test_convolution_windows_contract_spatial_axes(left, right, result, how, flops):
    text = f"""\
ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {{
  %l = bf16[{left}]{{1,0}} parameter(0)
  %r = bf16[{right}]{{1,0}} parameter(1)
  ROOT %convolution.1 = bf16[{result}]{{1,0:T(8,128)}} convolution(%l, %r), {how}
}}
"""
    assert product_flops(text) == 2 * math.prod(map(int, result.split(","))) * flops


def test_loops_of_unknown_length_use_the_given_trip_count():
    unknown = PROGRAM.replace("condition=%condition", "condition=%unknown")
    once, thrice = collectives(unknown), collectives(unknown, dynamic=3)
    of = {each.kind: each for each in once}
    for each in thrice:
        factor = 1 if each.kind == "all-reduce" else 3
        assert each.bytes_sent == pytest.approx(factor * of[each.kind].bytes_sent)


GPUS = """\
%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  %one.1 = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %done.1 = bf16[64,4]{1,0} all-gather-done(%one.1)
  %two.1 = ((bf16[8]{0}, bf16[8,4]{1,0}), (bf16[64]{0}, bf16[64,4]{1,0})) all-gather-start(%x, %y), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %scatter.1 = ((bf16[64,4]{1,0}), bf16[8,4]{1,0}) reduce-scatter-start(%z), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %left = f8e4m3fn[16,8]{1,0} parameter(1)
  %right = f8e4m3fn[32,8]{1,0} parameter(2)
  %f8.1 = (bf16[16,32]{1,0}, s8[33554432]{0}) custom-call(%left, %right, %scale), custom_call_target="__cublas$lt$matmul$f8", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %attention.1 = (bf16[8,4]{1,0}, f32[8]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %tuple = (s32[], bf16[8,4]{1,0}) tuple(%i, %x)
}

%compared (state: (s32[], bf16[8,4])) -> pred[] {
  ROOT %fused = pred[] fusion(%state), kind=kLoop, calls=%less
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %while.1 = (s32[], bf16[8,4]{1,0}) while(%t), condition=%compared, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  ROOT %r = bf16[8,4]{1,0} copy(%p)
}
"""


def test_gpu_programs_are_parsed():
    """What starts a collective names what it takes and gives; libraries compute products; a loop
    says how often it runs."""
    found = {each.kind: each for each in collectives(GPUS)}
    gathered = 24 * (64 * 4 + 64 * 4 + 64) * 2 * 7 / 8
    assert found["all-gather"] == Collective("all-gather", 8, 48, gathered)
    assert found["reduce-scatter"].bytes_sent == 24 * 8 * 4 * 2 * 7
    assert product_flops(GPUS) == 24 * 2 * 16 * 32 * 8
    assert kernels(GPUS) == {"cublas$lt$matmul$f8": 1, "cudnn$fmhaSoftmax": 1}


def test_scatters_to_indices_that_may_repeat_are_named():
    text = """
  %scatter.1 = f32[8,4]{1,0} scatter(%a, %i, %x), to_apply=%add, metadata={op_name="jit(step)/embed/scatter-add"}
  ROOT %scatter.2 = f32[8,4]{1,0} scatter(%a, %i, %x), unique_indices=true, to_apply=%set
  %pool = f32[8]{0} select-and-scatter(%a, %x, %zero), select=%ge, scatter=%add
  %reduce-scatter.1 = f32[4]{0} reduce-scatter(%a), to_apply=%add
  %input_scatter_fusion = f32[8,4]{1,0} fusion(%a), kind=kInput, calls=%fused_scatter
"""
    assert scatters(text) == ["jit(step)/embed/scatter-add", "pool"]
