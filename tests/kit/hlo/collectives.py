"""Every collective of a compiled step: its arrays, how often they are sent, and what they carry.

Bytes are those of the whole array: of an all-reduce the array itself, of an all-gather its result,
of a reduce-scatter its argument.
"""

import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from kit.hlo.text import BYTES, branches, opened

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
        named = re.findall(r"(?:body|to_apply|calls)=%([\w.\-]+)", line) + branches(line)
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
