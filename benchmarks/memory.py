"""What a step of every method keeps in memory, and what of its state is updated in place.

    python -m benchmarks.memory [--preset digits] [--methods moco_v2 …] [--devices 1] [--out FILE]

The step of every method's preset, compiled and never run, on images of noise. From
`compiled.memory_analysis()`, bytes of one device: arguments (state and batch), outputs, what of the
outputs stands in the place of an argument (alias: the donated state), temporaries, and the peak,
which is of all of them at once. `reused` is alias by the bytes of the state: 100 % where no part of
the state is there twice.

In place: a queue, a memory bank and the like (arrays of the method's own state from --large numbers
on) are written where they are if no instruction of the optimised program copies them: `copy` or a
fusion whose result has their shape and is not the update itself. The last columns count the bytes
of such arrays, and of those that are copied. --details names the instructions.
"""

import argparse
import json
import pathlib
import re

from benchmarks import collectives

COPIES = ("copy", "copy-start", "select")


def instructions(text: str) -> list[tuple[str, str, tuple[int, ...], str]]:
    """(computation, operation, shape, line) of every instruction with one array as its result.

    Args:
      text: of an optimised HLO module.
    """
    pattern = re.compile(r"^\s+(?:ROOT )?%\S+ = [a-z]+\d*\[([\d,]*)\]\S* ([\w\-]+)\(")
    found, computation = [], ""
    for line in text.splitlines():
        computation = collectives.opened(line) or computation
        if match := pattern.match(line):
            shape = tuple(int(d) for d in match[1].split(",") if d)
            found.append((computation, match[2], shape, line.strip()))
    return found


def copied(text: str, shapes: set[tuple[int, ...]]) -> list[tuple[tuple[int, ...], str]]:
    """(shape, instruction) of everything that copies an array of one of these shapes.

    A copy into a new array is the instruction `copy`, or a `select` (a `where` between old and
    new), alone or as the last of a fusion.
    """
    return [
        (shape, line)
        for _, operation, shape, line in instructions(text)
        if operation in COPIES and shape in shapes
    ]


def measure(name: str, preset: str, devices: int, large: int) -> dict:
    """What the step of one method asks for.

    Args:
      name: of the method.
      preset: of its config.
      devices: that the batch is split over; CPU devices are made.
      large: numbers from which on an array of the method's state counts as a queue or bank.
    """
    import jax
    import jax.numpy as jnp

    from ssl_jax import experiment, parallel

    e = collectives.prepare(name, preset, devices, "shard_map")
    c, rows = e.config, e.config.batch // e.config.accumulate
    batch = {
        "image": jax.ShapeDtypeStruct((c.accumulate, rows, *e.train.shape), jnp.uint8),
        "index": jax.ShapeDtypeStruct((c.accumulate, rows), jnp.int32),
        "label": jax.ShapeDtypeStruct((c.accumulate, rows), jnp.int32),
    }
    state = experiment.like(e)
    compiled = e.step.lower(state, parallel.like_batch(batch, e.mesh, c.parallel)).compile()
    m = compiled.memory_analysis()

    def size(tree):
        return sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.dtype != state.key.dtype
        )

    params = {p.shape for p in jax.tree.leaves(state.params)}
    own = [x for x in jax.tree.leaves(state.state) if x.size >= large and x.shape not in params]
    copies = copied(compiled.as_text(), {x.shape for x in own})
    return {
        "method": name,
        "batch": c.batch,
        "parameters": size(state.params),
        "state": size(state),
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "alias": m.alias_size_in_bytes,
        "temporary": m.temp_size_in_bytes,
        "peak": getattr(m, "peak_memory_in_bytes", 0),
        "own": [list(x.shape) for x in own],
        "own_bytes": size(own),
        "copies": [(list(shape), line) for shape, line in copies],
        "device": jax.devices()[0].device_kind,
        "version": jax.__version__,
    }


def table(results: list[dict]) -> str:
    """Markdown: a line for each method."""
    short = collectives.short
    lines = [
        "| method | batch | parameters | state | arguments | outputs | alias | reused | temporary "
        "| peak | queue, bank … | copied |",
        "|---" * 12 + "|",
    ]
    for r in results:
        cells = [r["method"], f"{r['batch']:,}"]
        cells += [short(r[k]) for k in ("parameters", "state", "arguments", "outputs", "alias")]
        cells += [f"{100 * r['alias'] / r['state']:.1f} %", short(r["temporary"]), short(r["peak"])]
        own = ", ".join("×".join(map(str, shape)) for shape in r["own"])
        cells += [own, str(len(r["copies"])) if own else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compiles the methods one after the other, prints the table, writes JSON."""
    from ssl_jax.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--devices", type=int, default=1, help="on CPU")
    parser.add_argument("--large", type=int, default=10_000, help="numbers of a queue or bank")
    parser.add_argument("--details", action="store_true", help="the instructions that copy")
    parser.add_argument("--out", type=pathlib.Path, help="JSON")
    a = parser.parse_args()
    results = []
    for name in a.methods:
        results.append(measure(name, a.preset, a.devices, a.large))
        if a.details:
            print(name, *(line for _, line in results[-1]["copies"]), sep="\n  ")
    print(f"{results[0]['device']}, JAX {results[0]['version']}, preset {a.preset}, ", end="")
    print(f"{a.devices} device(s); bytes of one device\n")
    print(table(results))
    if a.out:
        a.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
