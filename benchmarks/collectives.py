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

import argparse
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
PARTS = ("gradients", "BatchNorm", "embeddings", "statistics", "queue", "metrics")
# Which source file a collective comes from -> what it carries; others: see `part`.
FILES = {
    "models/norm.py": "BatchNorm",
    "losses/spread.py": "metrics",
    "methods/parts/queue.py": "queue",
    "losses/instance.py": "queue",  # NPID's memory bank
    "methods/deepcluster_v2.py": "queue",
    "methods/sela_v2.py": "queue",
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}


class Collective(NamedTuple):
    """One array of one collective operation.

    Attributes:
      kind: of KINDS.
      operation: name in the HLO; the arrays of a joined operation share it.
      dtype: as HLO writes it: f32, u8.
      shape: of the whole array, see above.
      times: how often a step sends it; more than 1 inside a loop.
      source: file of the package that asks for it, or '' if none is known.
      name: JAX's name of the operation.
    """

    kind: str
    operation: str
    dtype: str
    shape: tuple[int, ...]
    times: int
    source: str
    name: str


def elements(c: Collective) -> int:
    """Numbers in the array."""
    return math.prod(c.shape)


def size(c: Collective) -> int:
    """Bytes of the array, as often as a step sends it."""
    return elements(c) * BYTES[c.dtype] * c.times


def part(c: Collective) -> str:
    """What the array carries, of PARTS.

    gradients: of the parameters; BatchNorm: means and mean squares and their gradients; embeddings:
    rows of all devices that a loss compares, and the way back of their gradients; statistics: sums
    over the rows, as a centre or a cross-correlation; queue: what enters a queue or a memory bank;
    metrics: the loss, numbers to be logged, the monitor of collapse.

    Under `jit` no line asks for a collective, the partitioner puts them where a sum over the rows
    is: what a loss does to a parameter itself (prototypes) counts as statistics there.
    """
    if c.source in FILES:
        return FILES[c.source]
    if c.kind != "all-reduce":
        return "embeddings"
    if c.source.startswith("models/") and "transpose(" in c.name:  # under jit
        return "gradients"
    if not c.shape:
        return "metrics"
    averaged = c.source == "train/step.py" and c.name.endswith("psum")
    return "gradients" if averaged else "statistics"


def read(text: str, devices: int) -> list[Collective]:
    """All collectives in the text of an optimised HLO module.

    Args:
      text: `compiled.as_text()`.
      devices: of the mesh; every collective is over all of them.

    Raises:
      ValueError: a collective in a loop whose length the text does not tell.
    """
    source_of, times_of = sources(text), repetitions(text)
    found, labels, computation = [], {}, ""
    instruction = re.compile(
        rf"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\("
    )
    element = re.compile(r"^\s+(?:ROOT )?%\S+ = \S+ get-tuple-element\(.*?%(\S+)\), index=(\d+)")
    for line in text.splitlines():
        computation = opened(line) or computation
        if match := element.match(line):  # a joined operation's arrays keep their own names here
            labels[match[1], int(match[2])] = metadata(line)
        elif match := instruction.match(line):
            operation, shapes, kind = match.groups()
            arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes)
            for i, (dtype, dimensions) in enumerate(arrays):
                shape = tuple(int(d) for d in dimensions.split(",") if d)
                if kind == "reduce-scatter":  # what is written is the share of one device
                    along = int(re.search(r"dimensions=\{(\d+)\}", line)[1])
                    shape = tuple(d * devices if j == along else d for j, d in enumerate(shape))
                times = times_of.get(computation, 1)
                if times is None:
                    raise ValueError(f"{operation} is in a loop of unknown length")
                found.append((kind, operation, dtype, shape, times, i, metadata(line)))
    collectives = []
    for kind, operation, dtype, shape, times, i, own in found:
        name, frame = labels.get((operation, i), own)
        collectives.append(
            Collective(kind, operation, dtype, shape, times, source_of.get(frame, ""), name)
        )
    return collectives


def opened(line: str) -> str | None:
    """Name of the computation that a line of HLO opens."""
    match = re.match(r"(?:ENTRY )?%(\S+) \(.*\{\s*$", line)
    return match and match[1]


def metadata(line: str) -> tuple[str, int]:
    """(JAX's name, number of the stack frame) of an instruction; ('', 0) where there is none."""
    name = re.search(r'op_name="([^"]*)"', line)
    frame = re.search(r"stack_frame_id=(\d+)", line)
    return (name[1] if name else "", int(frame[1]) if frame else 0)


def repetitions(text: str) -> dict[str, int | None]:
    """How often a step runs each computation: 1, or more in loops; None if that is unknown.

    Of a conditional every branch counts as taken.
    """
    calls: dict[str, list[tuple[str, int | None]]] = {}
    computation, entry = "", ""
    for line in text.splitlines():
        if name := opened(line):
            computation = name
            calls[computation] = []
            entry = name if line.startswith("ENTRY") else entry
            continue
        loop = re.search(r"\bwhile\(", line)
        count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        times = (int(count[1]) if count else None) if loop else 1
        named = re.findall(
            r"(?:body|to_apply|calls|true_computation|false_computation)=%([\w.\-]+)", line
        )
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            named += re.findall(r"%([\w.\-]+)", branches)
        calls.get(computation, []).extend((callee, times) for callee in named)

    found: dict[str, int | None] = {}

    def visit(name, times):
        found[name] = times
        for callee, factor in calls.get(name, ()):
            visit(callee, None if times is None or factor is None else times * factor)

    visit(entry, 1)
    return found


def sources(text: str) -> dict[int, str]:
    """Number of a stack frame -> the innermost file of the package in it, above devices/."""
    tables: dict[str, dict[int, str]] = {}
    title = None
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            title = tables.setdefault(line, {})
        elif title is not None and (match := re.match(r"(\d+) (.*)$", line)):
            title[int(match[1])] = match[2]
        elif opened(line):
            break
    field = re.compile(r"(\w+)=(\d+)")
    places = {i: dict(field.findall(x)) for i, x in tables.get("FileLocations", {}).items()}
    frames = {i: dict(field.findall(x)) for i, x in tables.get("StackFrames", {}).items()}
    # Frames count from 1. XLA writes a parent's number plus one, so that 1 is none.
    shift = int(frames.get(1, {}).get("parent_frame_id") == "1")

    def source(i):
        while i in frames:
            place = places[int(frames[i]["file_location_id"])]
            file = inside(tables["FileNames"][int(place["file_name_id"])].strip('"'))
            if file and not file.startswith("devices/"):
                return file
            i = int(frames[i].get("parent_frame_id", 0)) - shift
        return ""

    return {i: source(i) for i in frames}


def inside(path: str) -> str:
    """'losses/infonce.py' from the path of a file of the package, '' for any other.

    (By name: a compilation cache may hold the path of another checkout.)
    """
    import ssl_jax

    _, found, rest = path.rpartition("/ssl_jax/")
    return rest if found and (pathlib.Path(ssl_jax.__file__).parent / rest).is_file() else ""


def prepare(
    name: str, preset: str, devices: int, mode: str, fields: Mapping[str, Any] | None = None
):
    """The experiment of a preset on noise, as many images as ImageNet has, without data on disk.

    Args:
      name: of the method.
      preset: of its config.
      devices: CPU devices to make.
      mode: of parallel.MODES.
      fields: dotted names of what is otherwise in the config -> values.

    Returns:
      ssl_jax.experiment.Experiment; its batch is a multiple of what the devices can share.
    """
    from ssl_jax.contract.method import Run
    from ssl_jax.methods import METHODS
    from ssl_jax.processes import host
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment

    c, _ = configs.load(f"configs/{name}.py:{preset}")
    c.data.source, c.data.classes, c.evaluate.split = "synthetic", 0, "holdout"
    c.update_from_flattened_dict(fields or {})
    c.data.examples = 1_281_167 if preset == "imagenet" else max(4_000, c.batch)
    c.cpu_devices, c.parallel, c.compile_cache = devices, mode, ""
    facts = Run(c.data.examples, c.batch, c.data.examples // c.batch, 100)
    shared = devices * METHODS[name](c, facts).block * c.accumulate
    c.batch = -(-c.batch // shared) * shared
    return experiment.assemble(c, host.Cluster(1, 0, 1), None)


def compile_text(e) -> str:
    """The optimised HLO of an experiment's step."""
    import jax

    from ssl_jax.devices import layout
    from ssl_jax.train import experiment

    c, b = e.config, e.config.batch // e.config.accumulate
    rows = {"image": ((b, *e.train.shape), "uint8"), "index": ((b,), "int32")}
    rows["label"] = rows["index"]
    batch = {
        k: jax.ShapeDtypeStruct((c.accumulate, *shape), dtype) for k, (shape, dtype) in rows.items()
    }
    batch = layout.like_batch(batch, e.mesh, c.parallel)
    # No time for code that never runs; what is sent is settled before it is made.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return e.step.lower(experiment.like(e), batch).compile(compiler_options=quick).as_text()


class Images(NamedTuple):
    """How large the images of one device are.

    Attributes:
      numbers: in the smallest view of all of them.
      devices: that have as many.
      parameter: numbers in the largest parameter, which its gradient has as well.
    """

    numbers: int
    devices: int
    parameter: int


def images(config: Any, devices: int, params: Any) -> Images:
    """The size of a run's images.

    Args:
      config: of the run; `views`, `batch`, `accumulate` and `data` count.
      devices: of the mesh.
      params: parameters, or their shapes.
    """
    import jax

    side = min([config.data.size, *(v.size for v in config.views.values() if v.get("size"))])
    rows = config.batch // config.accumulate // devices
    largest = max(math.prod(p.shape) for p in jax.tree.leaves(params))
    return Images(rows * side**2 * config.data.channels, devices, largest)


def image_sized(found: Iterable[Collective], own: Images) -> list[Collective]:
    """The collectives that could carry the images of a device, or the feature maps of them.

    Those with as many numbers as the smallest view of them (of all devices' images, where the rows
    of all are gathered or scattered), and anything of uint8, which nothing but images is. Not so
    gradients of parameters, and square matrices that are summed: Barlow Twins' and VICReg's d × d
    numbers may be more.
    """

    def counted(c):
        gradient = part(c) == "gradients" and elements(c) <= own.parameter
        square = c.kind == "all-reduce" and len(c.shape) == 2 and c.shape[0] == c.shape[1]
        everyone = own.devices if c.kind in ("all-gather", "reduce-scatter") else 1
        return not gradient and not square and elements(c) >= everyone * own.numbers

    return [c for c in found if c.dtype == "u8" or counted(c)]


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


def short(count: float) -> str:
    """Bytes in three digits: '94.1 MB' (10⁶ bytes)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            digits = max(0, 2 - int(math.log10(count / scale)))
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count:.0f} B"


def table(results: list[dict]) -> str:
    """Markdown: a line for each method and mode."""
    found = [summary([Collective(*c) for c in r["collectives"]]) for r in results]
    kinds = [k for k in KINDS if any(k in f["kinds"] for f in found)]
    parts = [p for p in PARTS if any(p in f["parts"] for f in found)]
    head = ["method", "mode", "batch", "parameters", *kinds, *parts, "largest, no gradient", "view"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r, f in zip(results, found, strict=True):
        cells = [r["method"], r["mode"], f"{r['batch']:,}", short(r["parameter_bytes"])]
        for kind in kinds:
            k = f["kinds"].get(kind)
            cells.append(f"{k['operations']} ({k['arrays']}): {short(k['bytes'])}" if k else "")
        cells += [short(f["parts"][p]) if p in f["parts"] else "" for p in parts]
        cells += [f"{f['largest']:,}", f"{Images(*r['images']).numbers:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(name: str, preset: str, devices: int, mode: str) -> dict:
    """What one method sends, in this process."""
    import jax

    e = prepare(name, preset, devices, mode)
    found = read(compile_text(e), devices)
    params = jax.eval_shape(e.create, jax.random.key(0)).params
    return {
        "method": name,
        "preset": preset,
        "mode": mode,
        "devices": devices,
        "batch": e.config.batch,
        "parameter_bytes": sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(params)),
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

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--modes", nargs="+", default=["shard_map"])
    parser.add_argument("--details", action="store_true", help="every array on a line of its own")
    parser.add_argument("--out", type=pathlib.Path, help="JSON, added to after every method")
    a = parser.parse_args()
    results = json.loads(a.out.read_text()) if a.out and a.out.exists() else []
    asked = [(name, a.preset, mode, a.devices) for name in a.methods for mode in a.modes]
    done = {(r["method"], r["preset"], r["mode"], r["devices"]): r for r in results}
    for key in asked:
        if key not in done:
            name, preset, mode, devices = key
            done[key] = measure(name, preset, devices, mode)
            if a.out:
                a.out.write_text(json.dumps(list(done.values())) + "\n")
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
