"""FLOP of a program, counted in its jaxpr, and what devices could do by their data sheets."""

import math
import re

# Dense bfloat16 without sparsity, FLOP/s, and memory, bytes/s, by the end of the device's name.
# NVIDIA's data sheets: H100 (SXM5), H200 (SXM), A100 (SXM4, 80 and 40 GB).
PEAKS = {
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
}


def peak_of(device: str) -> tuple[float, float] | None:
    """(FLOP/s in bfloat16, bytes/s) by the data sheet of a device; None: not in the table."""
    return next((peak for name, peak in PEAKS.items() if device.endswith(name)), None)


def flops(jaxpr, platform: str, scope: str = "") -> int:
    """FLOP of the matrix products and convolutions of a program, on all devices together.

    2 for every product of two elements that exist: what padding and dilation put between them
    counts as nothing, nor does what nothing uses. Loops count as often as they run, where that is
    known. (XLA's own count is
    no use here: on a GPU it is not to be had before compilation, and afterwards what runs in
    libraries counts as nothing; and it takes every loop for one turn.)

    Args:
      jaxpr: of `jax.make_jaxpr`, or the jaxpr of a traced function.
      platform: 'cpu' or 'cuda': whose branch of lax.platform_dependent runs. Of another condition
        the dearest branch counts.
      scope: only what lies in this jax.named_scope; '': all.
    """
    total = 0
    for eqn in _used(getattr(jaxpr, "jaxpr", jaxpr)):
        name, p = eqn.primitive.name, eqn.params
        outside = scope and scope not in re.split(r"[/()]", str(eqn.source_info.name_stack))
        subs = [x for x in _leaves(p) if hasattr(x, "eqns")]
        counts = [flops(x, platform, scope if outside else "") for x in subs]
        if name == "cond":
            of = p.get("branches_platforms")
            mine = of and next(i for i, names in enumerate(of) if not names or platform in names)
            total += max(counts) if of is None else counts[mine]
        elif subs:
            times = p["length"] if name == "scan" else 1
            times *= p["mesh"].size if name == "shard_map" else 1
            total += times * sum(counts)
        elif not outside and name == "dot_general":
            (contracted, _), _ = p["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * terms * eqn.outvars[0].aval.size
        elif not outside and name == "conv_general_dilated":
            total += _convolution_flops(eqn)
    return total


def _used(jaxpr) -> list:
    """The equations whose results something uses."""
    used, live = [], {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or live.intersection(eqn.outvars):
            used.append(eqn)
            live |= {v for v in eqn.invars if not hasattr(v, "val")}
    return used


def _leaves(x) -> list:
    """All that is in dictionaries, tuples and lists."""
    if isinstance(x, dict):
        x = list(x.values())
    return [y for part in x for y in _leaves(part)] if isinstance(x, list | tuple) else [x]


def _convolution_flops(eqn) -> int:
    """2 · rows · channels out · channels in of a group · pairs of an output and an input place."""
    p, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
    of, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    total = 2 * out[of.out_spec[0]] * out[of.out_spec[1]] * rhs[of.rhs_spec[1]]
    for i in range(len(of.lhs_spec) - 2):
        n, k, o = (spec[2 + i] for spec in (of.lhs_spec, of.rhs_spec, of.out_spec))
        n, k, o = lhs[n], rhs[k], out[o]
        holes, step = p["lhs_dilation"][i], p["window_strides"][i]
        start = range(-p["padding"][i][0], step * o - p["padding"][i][0], step)
        taps = range(0, k * p["rhs_dilation"][i], p["rhs_dilation"][i])
        total *= sum(
            (a + t) % holes == 0 and 0 <= (a + t) // holes < n for a in start for t in taps
        )
    return total
