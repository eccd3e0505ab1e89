"""What a compiled step sends between devices: every collective, its arrays and their bytes.

    python -m benchmarks.collectives [--methods simclr moco_v2] [--devices 8] [--preset imagenet]
                                     [--modes shard_map] [--details] [--out FILE]

Compiles the step of each method for fake CPU devices and reads its optimised HLO. Shapes alone are
needed and nothing is executed, so that ImageNet's configs go through in some seconds of a core and
2 GB of memory each. The batch is the preset's, or the least one above it that the devices can
share (`Method.block`). Prints a table in Markdown; the last column is the largest array that is no
gradient, beside how many numbers the smallest view of a device's own images has.

Bytes are those of the whole array: of an all-reduce the array itself, of an all-gather its result,
of a reduce-scatter its argument. A ring sends (n − 1)/n of that from every device for a gather or a
scatter and twice as much for an all-reduce.
"""

import json
from typing import Any

from kit.hlo.collectives import (
    KINDS,
    PARTS,
    Collective,
    Images,
    elements,
    image_sized,
    images,
    part,
    read,
    size,
)

from benchmarks import assembled, harness, tables
from benchmarks.tables import short


def summary(found: list[Collective]) -> dict[str, Any]:
    """Operations and bytes by kind, bytes by part, and numbers in the largest non-gradient."""
    kinds = {}
    for kind in KINDS:
        some = [c for c in found if c.kind == kind]
        if some:
            kinds[kind] = {
                "operations": len({c.operation for c in some}),
                "arrays": len(some),
                "bytes": sum(map(size, some)),
                "dtypes": sorted({c.dtype for c in some}),
            }
    parts = {p: sum(size(c) for c in found if part(c) == p) for p in PARTS}
    return {
        "kinds": kinds,
        "parts": {p: b for p, b in parts.items() if b},
        "largest": max((elements(c) for c in found if part(c) != "gradients"), default=0),
    }


def table(results: list[dict]) -> str:
    """Markdown: a line for each method and mode."""
    found = [summary([Collective(*c) for c in r["collectives"]]) for r in results]
    kinds = [k for k in KINDS if any(k in f["kinds"] for f in found)]
    parts = [p for p in PARTS if any(p in f["parts"] for f in found)]
    columns = ["method", "mode", "batch", "parameters", *kinds, *parts, "largest, no gradient"]
    rows = []
    for r, f in zip(results, found, strict=True):
        cells = [r["method"], r["mode"], f"{r['batch']:,}", short(r["parameter_bytes"])]
        for kind in kinds:
            k = f["kinds"].get(kind)
            cells.append(f"{k['operations']} ({k['arrays']}): {short(k['bytes'])}" if k else "")
        cells += [short(f["parts"][p]) if p in f["parts"] else "" for p in parts]
        rows.append([*cells, f"{f['largest']:,}", f"{Images(*r['images']).numbers:,}"])
    return tables.table([*columns, "view"], rows)


def measure(name: str, preset: str, devices: int, mode: str) -> dict:
    """What one method sends, in this process."""
    import jax

    e = assembled.preset(name, preset, devices, mode)
    found = read(assembled.compiled(e).as_text(), devices)
    params = jax.eval_shape(e.create, jax.random.key(0)).params
    return {
        "method": name,
        "preset": preset,
        "mode": mode,
        "devices": devices,
        "batch": e.config.batch,
        "parameter_bytes": assembled.size(params),
        "images": images(e.config, devices, params),
        "collectives": found,
    }


def details(result: dict) -> str:
    """A line for every array."""
    found = [Collective(*c) for c in result["collectives"]]
    lines = []
    for c in sorted(found, key=lambda c: (KINDS.index(c.kind), part(c), -size(c))):
        shape = f"{c.dtype}[{','.join(map(str, c.shape))}]"
        times = f" × {c.times}" if c.times > 1 else ""
        lines.append(f"  {c.kind:<19}{part(c):<12}{shape + times:<28}{c.source:<30}{c.name}")
    return "\n".join(lines)


def main() -> None:
    """Compiles the methods one after the other and prints the table."""
    from ssl_jax.methods import METHODS

    parser = harness.parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--modes", nargs="+", default=["shard_map"])
    parser.add_argument("--details", action="store_true", help="every array on a line of its own")
    a = harness.parse(parser, methods=["simclr"], preset="digits")
    # What --out has is not measured again.
    results = json.loads(a.out.read_text()) if a.out and a.out.exists() else []
    asked = [(name, a.preset, mode, a.devices) for name in a.methods for mode in a.modes]
    done = {(r["method"], r["preset"], r["mode"], r["devices"]): r for r in results}
    for key in asked:
        if key not in done:
            name, preset, mode, devices = key
            done[key] = measure(name, preset, devices, mode)
            harness.write(a.out, list(done.values()))
        if a.details:
            print(f"{key}\n{details(done[key])}")
    chosen = [done[key] for key in asked]
    print(f"\n{a.devices} devices, preset {a.preset}; operations (arrays): bytes of a step\n")
    print(table(chosen))
    bad = [
        f"{r['method']} ({r['mode']})"
        for r in chosen
        if image_sized([Collective(*c) for c in r["collectives"]], Images(*r["images"]))
    ]
    print(f"\ncollectives of the size of images: {', '.join(bad) or 'none'}")


if __name__ == "__main__":
    main()
