"""What a profile of a step says in words and tables."""

import re

from kit.hlo.program import KINDS


def report(case: str, r: dict) -> str:
    """Markdown: where a step's time goes, its longest operations, its limits."""
    ms, busy = 1e3, r["seconds"] - r["idle"]
    lines = [
        f"### {case}: {r['batch']} images, {r['dtype']}, on {r['device']}, JAX "
        f"{r['versions']['jax']}",
        "",
        f"{ms * r['untraced']:,.1f} ms a step; {ms * r['seconds']:,.1f} ms in the trace, which the "
        f"table divides. The operation is known of {100 * r['named']:.1f} % of the busy time.",
        "",
        "| | ms | of the step | forward | backward |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        if by := r["kinds"].get(kind):
            total = sum(by.values())
            parts = [f"{ms * by[w]:,.2f}" if by.get(w) else "" for w in ("forward", "backward")]
            lines.append(
                f"| {kind} | {ms * total:,.2f} | {100 * total / r['seconds']:.1f} % | "
                f"{' | '.join(parts)} |"
            )
    lines += [
        f"| idle: no operation on the device | {ms * r['idle']:,.2f} | "
        f"{100 * r['idle'] / r['seconds']:.1f} % | | |",
        "",
        "The longest idle times, in ms a step: "
        + "; ".join(
            f"{ms * g['seconds']:.2f} between {g['after']} and {g['before']}" for g in r["gaps"]
        )
        + ".",
        "",
        "| the longest operations | kind | times | ms | of the step | GB/s | result | in JAX |",
        "|---" * 8 + "|",
    ]
    for o in r["top"]:
        rate = o["bytes"] * o["times"] / o["seconds"] / 1e9 if o["seconds"] else 0
        type_ = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", o["type"])
        source = re.sub(r"^jit\(step\)/(shard_map/)?", "", o["source"]).replace("|", "\\|")
        lines.append(
            f"| {o['operation'][:40]} | {o['kind']} | {o['times']:.0f} | {ms * o['seconds']:,.2f} "
            f"| {100 * o['seconds'] / r['seconds']:.1f} % | {rate:,.0f} | {type_[:40]} "
            f"| {source[-70:]} |"
        )
    lines += ["", *limits(r)]
    arithmetic = (r["peaks"] or r["measured"])[0]
    kinds = [r["kinds"].get(k, {}) for k in ("convolution", "matrix product")]
    if multiplying := sum(sum(by.values()) for by in kinds):
        rate = (r["flops"] - r["views_flops"]) / multiplying
        lines.append(
            f"Convolutions and matrix products, without the augmentation's, run at "
            f"{rate / 1e12:,.2f} TFLOP/s, {100 * rate / arithmetic:.0f} % of the peak; they are "
            f"{100 * multiplying / busy:.0f} % of the busy time."
        )
    return "\n".join(lines)


def limits(r: dict) -> list[str]:
    """Lines of Markdown: the least time by arithmetic and by memory, and the step's beside it."""
    peaks, measured = r["peaks"], r["measured"]
    sheet = "data sheet" if peaks else "measured here"
    flops, moving = peaks or measured
    least = {"arithmetic": r["flops"] / flops, "memory": r["bytes"] / moving}
    which = max(least, key=least.get)
    lines = [
        f"| limit | of a step | peak ({sheet}) | least time |",
        "|---|---|---|---|",
        f"| arithmetic | {r['flops'] / 1e9:,.1f} GFLOP | {flops / 1e12:,.2f} TFLOP/s "
        f"| {1e3 * least['arithmetic']:,.2f} ms |",
        f"| memory | {r['bytes'] / 1e9:,.3f} GB | {moving / 1e9:,.0f} GB/s "
        f"| {1e3 * least['memory']:,.2f} ms |",
        "",
        f"The step takes {r['untraced'] / least[which]:.2f} times the larger, that of {which}.",
    ]
    if peaks:
        lines.append(
            f"Measured here: a plain product {measured[0] / 1e12:,.0f} TFLOP/s "
            f"({100 * measured[0] / flops:.0f} %), a plain copy {measured[1] / 1e12:,.2f} TB/s "
            f"({100 * measured[1] / moving:.0f} %)."
        )
    return lines
