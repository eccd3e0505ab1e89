"""What benchmarks of a step count, divide and search. Nothing here is timed."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from kit.hlo import program
from kit.profile import flops, planning, report, trace

HLO = """HloModule jit_step, is_scheduled=true

%fused_dot (p.0: f32[8,4], p.1: f32[4,16]) -> f32[8,16] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = f32[4,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%p.0, %p.1), metadata={op_name="jit(step)/transpose(jvp(loss))/MLP/dot_general"}
}

%fused_slice (p.2: f32[100,4], p.3: s32[]) -> f32[8,4] {
  %p.2 = f32[100,4]{1,0} parameter(0)
  %p.3 = s32[] parameter(1)
  ROOT %slice.1 = f32[8,4]{1,0} dynamic-slice(%p.2, %p.3, %p.3), dynamic_slice_sizes={8,4}
}

%fused_update (p.4: f32[100,4], p.5: f32[8,4], p.6: s32[]) -> f32[100,4] {
  %p.4 = f32[100,4]{1,0} parameter(0)
  %p.5 = f32[8,4]{1,0} parameter(1)
  %p.6 = s32[] parameter(2)
  ROOT %write.1 = f32[100,4]{1,0} dynamic-update-slice(%p.4, %p.5, %p.6, %p.6)
}

ENTRY %main (a: f32[100,4], b: f32[4,16], i: s32[]) -> f32[8,16] {
  %a = f32[100,4]{1,0} parameter(0)
  %b = f32[4,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %slice_fusion = f32[8,4]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused_slice
  %update_fusion = f32[100,4]{1,0} fusion(%a, %slice_fusion, %i), kind=kLoop, calls=%fused_update
  %noise.1 = f32[8,4]{1,0} add(%slice_fusion, %slice_fusion), metadata={op_name="jit(step)/views/vmap()/add"}
  %moment.1 = f32[8,4]{1,0} add(%noise.1, %noise.1), metadata={op_name="jit(step)/cond/branch_1_fun/update/add"}
  %all-reduce.1 = (f32[8,4]{1,0}, /*index=1*/f32[8,4]{1,0}) all-reduce(%noise.1, %moment.1), to_apply=%sum
  %exp.1 = f32[8,4]{1,0} exponential(%noise.1), metadata={op_name="jit(step)/jvp(loss)/attn/softmax/exp"}
  %conv.1 = (bf16[8,4]{1,0}, u8[99]{0}) custom-call(%exp.1, %b), custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(loss)/conv"}
  ROOT %dot_fusion = f32[8,16]{1,0} fusion(%noise.1, %b), kind=kCustom, calls=%fused_dot
}
"""  # noqa: E501


def count(f, *shapes, platform="cpu", scope=""):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return flops.flops(jax.make_jaxpr(f)(*arguments), platform, scope)


def test_flops_of_products_loops_and_branches():
    product = 2 * 3 * 4 * 5
    assert count(jnp.matmul, (3, 4), (4, 5)) == product
    assert count(jnp.matmul, (7, 3, 4), (7, 4, 5)) == 7 * product
    loop = lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]  # noqa: E731
    assert count(jax.jit(loop), (3, 4), (4, 4)) == 6 * 2 * 3 * 4 * 4

    def either(x, w):
        return lax.platform_dependent(x, w, cpu=lambda x, w: x @ w, default=lambda x, w: x @ w @ w)

    assert count(either, (3, 4), (4, 4)) == 96
    assert count(either, (3, 4), (4, 4), platform="cuda") == 192
    branch = lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)  # noqa: E731
    assert count(branch, (3, 4), (4, 4)) == 96

    dead = lambda x, w: (x @ w, jax.vjp(lambda x: x @ w, x)[1](x @ w)[0])[1]  # noqa: E731
    assert count(dead, (3, 4), (4, 4)) == 2 * 96  # of three products one is for nothing

    def parts(x, w):
        with jax.named_scope("views"):
            x = jax.jit(jnp.matmul)(x, w)
        return x @ w @ w

    assert count(parts, (3, 4), (4, 4)) == 3 * 96
    assert count(parts, (3, 4), (4, 4), scope="views") == 96


def test_flops_of_a_convolution_leave_out_padding_and_holes():
    def convolve(x, k):
        return lax.conv_general_dilated(
            x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # 4 pixels, 3 taps, stride 2, a zero on either side: outputs at −1 and 1 see 2 and 3 pixels.
    forward = 2 * 6 * 7 * 5 * (2 + 3) ** 2
    shapes = ((6, 4, 4, 5), (3, 3, 5, 7))
    assert count(convolve, *shapes) == forward
    # Each gradient multiplies the same pairs, though XLA puts holes between them.
    loss = lambda x, k: jnp.square(convolve(x, k)).sum()  # noqa: E731
    assert count(jax.grad(loss, (0, 1)), *shapes) == 3 * forward


@pytest.mark.parametrize(
    "name, kind, phase",
    [
        ("dot_fusion", "matrix product", "backward"),
        ("slice_fusion", "copy, transpose, convert", ""),
        ("noise.1", "augmentation", "views"),
        ("moment.1", "optimizer, targets", "update"),
        ("all-reduce.1", "collective", ""),
        ("exp.1", "attention, softmax, norm", "forward"),
        ("conv.1", "convolution", "forward"),
    ],
)
def test_operations_have_a_kind(name, kind, phase):
    assert program.classify(name, "", *program.parse(HLO)) == (kind, phase)


def test_kernels_without_an_operation_go_by_their_names():
    kinds = {
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "matrix product",
        "sm80_xmma_fprop_implicit_gemm_indexed": "convolution",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "collective",
        "MemcpyD2D": "copy, transpose, convert",
        "something": "other",
    }
    for kernel, kind in kinds.items():
        assert program.classify("", kernel, {}, {}) == (kind, "")


@pytest.mark.parametrize(
    "name, floats, extra",
    [
        ("dot_fusion", 8 * 4 + 4 * 16 + 8 * 16, 0),
        ("slice_fusion", 2 * 8 * 4, 4),  # of 100 rows 8; and the place
        ("update_fusion", 2 * 8 * 4, 4),  # in place
        ("all-reduce.1", 4 * 8 * 4, 0),
        ("conv.1", 8 * 4 + 4 * 16, 2 * 8 * 4),  # without cuDNN's work space
    ],
)
def test_bytes_of_an_operation(name, floats, extra):
    assert program.traffic(name, *program.parse(HLO)) == 4 * floats + extra


def test_the_time_of_a_step_is_divided_without_remainder():
    def event(start, end, operation, kernel=""):
        return trace.Event("/device:GPU:0", start * 1e6, end * 1e6, operation, kernel)

    events = [
        event(0, 4, "dot_fusion"),
        event(2, 4, "noise.1"),  # beside the product
        event(7, 8, "", "slice_fusion"),  # three milliseconds after it
        event(8, 10, "unknown", "nccl"),
    ]
    r = trace.summarise(events, HLO, steps=2, top=2)
    assert r["seconds"] == pytest.approx(5e-3)
    assert r["idle"] == pytest.approx(1.5e-3)
    kinds = {kind: sum(by.values()) for kind, by in r["kinds"].items()}
    expected = {"matrix product": 1.5e-3, "augmentation": 0.5e-3, "collective": 1e-3}
    assert kinds == pytest.approx({**expected, "copy, transpose, convert": 0.5e-3})
    longest = {"after": "dot_fusion", "before": "slice_fusion", "seconds": pytest.approx(1.5e-3)}
    assert r["gaps"] == [longest]
    assert r["named"] == pytest.approx(5 / 7)
    assert [o["operation"] for o in r["top"]] == ["dot_fusion", "unknown"]
    assert r["bytes"] == (4 * 224 + 4 * 96 + 4 * 64 + 4) / 2


def test_a_trace_of_a_gpu_is_read_by_its_streams(tmp_path):
    from jax.profiler import ProfileData

    space = """planes {
      name: "/device:GPU:0"
      lines {
        id: 13 name: "Stream #13(Compute,MemcpyD2D)" timestamp_ns: 1000
        events { metadata_id: 1 duration_ps: 2000000 stats { metadata_id: 1 ref_value: 3 } }
        events { metadata_id: 2 offset_ps: 3000000 duration_ps: 1000000 }
      }
      lines {
        id: 14 name: "XLA Ops" timestamp_ns: 1000
        events { metadata_id: 1 duration_ps: 2000000 stats { metadata_id: 1 ref_value: 3 } }
      }
      event_metadata { key: 1 value { id: 1 name: "gemm_fusion_dot_1" } }
      event_metadata { key: 2 value { id: 2 name: "MemcpyD2D" } }
      stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
      stat_metadata { key: 3 value { id: 3 name: "dot_fusion" } }
    }"""
    file = tmp_path / "x.xplane.pb"
    file.write_bytes(ProfileData.text_proto_to_serialized_xspace(space))
    events, outline = trace.read_trace(str(file))
    assert events == [
        ("/device:GPU:0", 1000, 3000, "dot_fusion", "gemm_fusion_dot_1"),
        ("/device:GPU:0", 4000, 5000, "", "MemcpyD2D"),
    ]
    assert len(outline) == 2  # the line that repeats the streams is named, and not read


def test_limits_and_the_distance_to_them():
    r = {"flops": 989e9, "bytes": 6.7e9, "untraced": 3e-3, "measured": (500e12, 3e12)}
    text = "\n".join(report.limits(r | {"peaks": flops.peak_of("1 × NVIDIA H100 80GB HBM3")}))
    assert "| 1.00 ms |" in text and "| 2.00 ms |" in text
    assert "1.50 times the larger, that of memory" in text
    assert flops.peak_of("1 × NVIDIA H200 NVL") is None
    text = "\n".join(report.limits(r | {"peaks": None}))
    assert "measured here" in text and "1.34 times" in text


@pytest.mark.parametrize(
    "limit, asked, expected, runs",
    [
        (10, None, 256, [64, 128, 256]),
        (40, None, 1024, [64, 128, 1024]),
        (1, None, 0, [64]),
        (16.5, None, 512, [64, 128, 256, 512]),  # 17 by the line, and XLA finds a way
        (None, 16.5, 256, [64, 128, 256, 512]),  # more than was asked for does not count
    ],
)
def test_the_largest_batch_is_found_in_few_runs(limit, asked, expected, runs):
    ran = []

    def run(text):
        batch = json.loads(text)["batch"]
        ran.append(batch)
        need = 1 + batch / 32  # a GiB, and one for every 32 images
        fits = need <= (limit or 100) + 0.5
        memory = {"memory": need * 2**30, "limit": limit and limit * 2**30}
        return memory if fits else {"failed": "out of memory"}

    text = json.dumps({"batch": 64, "data": {}})
    r = planning.largest(run, text, asked)
    assert r["batch"] == expected and ran == runs


def test_the_plan_of_a_gpu():
    plan = planning.plan(["mae_vit_b16"], ["ssl_jax", "torch"], ["steps", "profile", "remat"])
    assert [(part, peer) for part, _, peer in plan] == [
        ("steps", "ssl_jax"),
        ("steps", "torch"),
        ("profile", "ssl_jax"),
        ("remat", "ssl_jax"),
    ]
