"""The operations of a compiled step: what they move, and what kind of work they are."""

import re
from collections import Counter, defaultdict
from typing import NamedTuple

from kit.hlo import collectives
from kit.hlo.text import opened, size

KINDS = (
    "augmentation",
    "convolution",
    "matrix product",
    "attention, softmax, norm",
    "reduction",
    "elementwise",
    "copy, transpose, convert",
    "optimizer, targets",
    "collective",
    "other",
)
# What holds other operations: its time is theirs.
REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter", "sort", "scatter", "topk"}
MOVES = {"copy", "transpose", "bitcast", "slice", "dynamic-slice", "dynamic-update-slice", "pad"}
MOVES |= {"concatenate", "reverse", "gather", "reshape", "broadcast", "convert", "parameter"}
MOVES |= {"constant", "iota", "tuple", "get-tuple-element", "copy-start", "copy-done"}


class Operation(NamedTuple):
    """An instruction of an optimised HLO module.

    Attributes:
      opcode: 'fusion', 'dot' …
      type: of its result, as HLO writes it.
      operands: names.
      source: its name in JAX, '' where it has none.
      calls: the computation of a fusion, or ''.
      target: of a custom call, or ''.
      number: of a parameter; −1 otherwise.
    """

    opcode: str
    type: str
    operands: list[str]
    source: str
    calls: str
    target: str
    number: int


def closed(text: str, start: int) -> int:
    """The place behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def parse(text: str) -> tuple[dict[str, Operation], dict[str, list[str]]]:
    """(operation by name, names of the operations of each computation) of an HLO module."""
    operations, computations, computation = {}, defaultdict(list), ""
    for line in text.splitlines():
        computation = opened(line) or computation
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if not match:
            continue
        rest = line[match.end() :]
        end = closed(rest, 0) if rest.startswith("(") else rest.find(" ")
        called = re.match(r"\s*([\w\-]+)\(", rest[end:])
        if not called:
            continue
        start = end + called.end() - 1
        stop = closed(rest, start)
        inside, after = rest[start + 1 : stop - 1], rest[stop:]
        source = re.search(r'op_name="((?:[^"\\]|\\.)*)"', after)
        calls = re.search(r"calls=%?([\w.\-]+)", after)
        target = re.search(r'custom_call_target="([^"]*)"', after)
        operations[match[1]] = Operation(
            called[1],
            rest[:end],
            re.findall(r"%([\w.\-]+)", inside),
            source[1] if source else "",
            calls[1] if calls else "",
            target[1] if target else "",
            int(inside) if called[1] == "parameter" else -1,
        )
        computations[computation].append(match[1])
    return operations, dict(computations)


def traffic(name: str, operations: dict, computations: dict) -> int:
    """Bytes that an operation reads and writes: all of its operands and its result.

    Of an operand that a fusion only slices, the slices; of one that it only updates in part, and of
    the result then, the part.
    """
    op = operations[name]
    if op.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * size(op.type)
    if op.opcode == "dynamic-update-slice":
        return 2 * size(operations[op.operands[1]].type) if len(op.operands) > 1 else 0
    inner = {n: operations[n] for n in computations.get(op.calls, ())}
    # A library's work space is among the results of its call.
    type_ = re.sub(r"u8\[\d+\]", "", op.type) if op.opcode == "custom-call" else op.type
    written, in_place = size(type_), set()
    for part in inner.values():
        if part.opcode == "dynamic-update-slice" and size(part.type) <= written:
            written += size(inner[part.operands[1]].type) - size(part.type)
            in_place.add(part.operands[0])
    read = {i: size(operations[x].type) for i, x in enumerate(op.operands) if x in operations}
    for n, part in inner.items():
        users = [x for x in inner.values() if n in x.operands]
        if part.opcode != "parameter" or part.number not in read or not users:
            continue
        if n in in_place and len(users) == 1:
            read[part.number] = 0
        elif all(x.opcode in ("dynamic-slice", "slice", "gather") for x in users):
            read[part.number] = min(read[part.number], sum(size(x.type) for x in users))
    return max(written, 0) + sum(read.values())


def phase(source: str) -> str:
    """'views', 'forward', 'backward' or 'update', of an operation's name in JAX; '' for none."""
    parts = re.split(r"[/():]", source)
    if "views" in parts:
        return "views"
    if "update" in parts:
        return "update"
    return "backward" if "transpose" in parts else "forward" if "loss" in parts else ""


def within(name: str, operations: dict, computations: dict) -> list[Operation]:
    """The operations of a fusion, and of those that it holds."""
    found, queue = [], [operations[name].calls]
    while queue:
        parts = [operations[n] for n in computations.get(queue.pop(), ())]
        found += parts
        queue += [part.calls for part in parts if part.calls]
    return found


def classify(name: str, kernel: str, operations: dict, computations: dict) -> tuple[str, str]:
    """(one of KINDS, phase) of an event, by its operation, else by the name of its kernel."""
    if name not in operations:
        patterns = {
            "convolution": r"conv|fprop|dgrad|wgrad|cudnn",
            "matrix product": r"gemm|cutlass|nvjet|xmma|cublas|splitk",
            "collective": r"nccl|all.?reduce|all.?gather",
            "attention, softmax, norm": r"softmax|norm|fmha|flash",
            "reduction": r"reduc|sort",
            "copy, transpose, convert": r"memcpy|memset|copy|transpose|slice|concat",
            "elementwise": r"fusion|loop_",
        }
        kinds = (k for k, p in patterns.items() if re.search(p, kernel, re.IGNORECASE))
        return next(kinds, "other"), ""
    op, inner = operations[name], within(name, operations, computations)
    codes = {op.opcode} | {part.opcode for part in inner}
    targets = " ".join({op.target} | {part.target for part in inner}).lower()
    sources = [op.source] if op.source else [part.source for part in inner if part.source]
    where = Counter(map(phase, sources)).most_common(1)[0][0] if sources else ""
    if op.opcode.startswith(collectives.KINDS):
        return "collective", where
    if where == "views":
        return "augmentation", where
    if where == "update":
        return "optimizer, targets", where
    if "convolution" in codes or "conv" in targets:
        return "convolution", where
    if "fmha" in targets or "softmax" in targets:
        return "attention, softmax, norm", where
    if codes & {"dot", "ragged-dot"} or re.search(r"gemm|matmul|blas", targets):
        return "matrix product", where
    if codes <= MOVES | {"fusion"}:
        return "copy, transpose, convert", where
    if re.search(r"softmax|logsumexp|norm|attention|/bn\d?\b|_bn\b", " ".join(sources)):
        return "attention, softmax, norm", where
    if codes & REDUCTIONS:
        return "reduction", where
    return ("other" if op.opcode == "custom-call" else "elementwise"), where
