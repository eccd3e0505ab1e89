"""What a step of every method keeps in memory, and what of its state is not updated in place.

    python -m benchmarks.memory [--preset digits] [--methods moco_v2 …] [--devices 1] [--out FILE]
                                [--set method.encoder_rows=256 batch=4096]

The step of every method's preset, compiled and never run, on images of noise. From
`compiled.memory_analysis()`, bytes of one device: arguments (state and batch), outputs, temporaries
and alias, which is what of the outputs stands in the place of an argument: the donated state, once
and not twice, where `reused` is 100 %. The sum is arguments + outputs − alias + temporaries.

Where the state is updated in place, nothing of it is copied on the way. Two kinds of copies are
counted in the optimised program. 'As it came': of the state that came in, because the loss changes
it while the old values must live on (a step that is not finite leaves all as it was). 'In a
branch': of what the loss has changed, into its place, in the branch of the step's condition that
takes it, or of what comes out of the condition. EMA targets that follow the optimizer, parameters
and moments show up in neither.
--details names the copies.
"""

import ast
from collections.abc import Mapping
from typing import Any

from kit.hlo.copies import copies

from benchmarks import assembled, harness, tables
from benchmarks.tables import short


def measure(name: str, preset: str, devices: int, fields: Mapping[str, Any]) -> dict:
    """What the step of one method asks for.

    Args:
      name: of the method.
      preset: of its config.
      devices: that the batch is split over; CPU devices are made.
      fields: dotted names of what is otherwise in the config -> values.
    """
    import jax

    from ssl_jax.train import experiment

    e = assembled.preset(name, preset, devices, "shard_map", fields)
    state, compiled = experiment.like(e), assembled.compiled(e)
    m = compiled.memory_analysis()
    bytes_of = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "alias": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
    }
    return {
        "method": name,
        "batch": e.config.batch,
        "parameters": assembled.size(state.params),
        "state": assembled.size(state._replace(key=())),
        **bytes_of,
        "sum": sum(bytes_of.values()) - 2 * bytes_of["alias"],
        **copies(compiled.as_text()),
        "device": jax.devices()[0].device_kind,
        "version": jax.__version__,
    }


def table(results: list[dict]) -> str:
    """Markdown: a line for each method."""
    columns = ("parameters", "state", "arguments", "outputs", "temporaries", "sum")
    rows = []
    for r in results:
        cells = [r["method"], f"{r['batch']:,}", *(short(r[k]) for k in columns)]
        totals = [sum(size for _, size in r[kind]) for kind in ("came", "branches")]
        reused = f"{100 * r['alias'] / r['state']:.1f} %"
        rows.append([*cells, reused, *(short(total) if total else "" for total in totals)])
    reused = ("reused", "copied as it came", "copied in a branch")
    return tables.table(("method", "batch", *columns, *reused), rows)


def details(r: dict) -> str:
    """A line for every copy of a method."""
    lines = [r["method"]]
    for kind in ("came", "branches"):
        for what, size in sorted(r[kind], key=lambda copy: -copy[1]):
            lines.append(f"  {kind:<10}{short(size):<10}{what}")
    return "\n".join(lines)


def main() -> None:
    """Compiles the methods one after the other, prints the table, writes JSON."""
    from ssl_jax.methods import METHODS

    parser = harness.parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--devices", type=int, default=1, help="on CPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="of the config")
    parser.add_argument("--details", action="store_true", help="every copy")
    a = harness.parse(parser, methods=["simclr"])
    fields = dict(word.split("=", 1) for word in a.set)
    fields = {name: ast.literal_eval(value) for name, value in fields.items()}
    results = []
    for name in a.methods:
        results.append(measure(name, a.preset, a.devices, fields))
        if a.details:
            print(details(results[-1]), flush=True)
        harness.write(a.out, results)
    print(
        f"{results[0]['device']}, JAX {results[0]['version']}, preset {a.preset}, ", *a.set, end=" "
    )
    print(f"{a.devices} device(s); bytes of one device\n")
    print(table(results))


if __name__ == "__main__":
    main()
