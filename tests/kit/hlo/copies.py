"""Copies of the state in a compiled step, which should update it in place."""

import math
import re

from kit.hlo.text import BYTES, branches, opened

LEAST = 1024  # bytes of an array that is worth telling


def copies(text: str) -> dict[str, list[tuple[str, int]]]:
    """Copies of the state in the text of an optimised HLO module.

    Returns:
      {'came': [(name of the leaf, bytes)], 'branches': [(type and shape, bytes)]}: arrays of the
      state as it came in; arrays in a branch of a condition of the whole program, or out of one.
    """
    names, computation = {}, ""
    conditionals, inside, after = set(), set(), set()
    for line in text.splitlines():
        computation = opened(line) or computation
        if match := re.search(r"%(\S+) = .* parameter\(\d+\).*op_name=\"(state\..*?)\"", line):
            names[match[1]] = match[2].replace("\\'", "'")
        if match := re.search(r"%(\S+) = .* conditional\(", line):
            conditionals.add(match[1])
            inside |= set(branches(line))
        match = re.search(r"%(\S+) = .* get-tuple-element\(.*%([\w.\-]+)\), index=", line)
        if match and match[2] in conditionals:
            after.add(match[1])
    copy = re.compile(
        r"^\s+(?:ROOT )?%\S+ = ([a-z]+\d*)\[([\d,]*)\]\S* "
        r"(?:copy|copy-start|fusion)\(%([\w.\-]+)\)(?:, kind=\w+, calls=%\S*copy\S*)?"
    )
    found = {"came": [], "branches": []}
    for line in text.splitlines():
        computation = opened(line) or computation
        match = copy.match(line)
        if match is None or ("fusion(" in line and not re.search(r"calls=%\S*copy", line)):
            continue
        dtype, dimensions, operand = match.groups()
        shape = [int(d) for d in dimensions.split(",") if d]
        size = math.prod(shape) * BYTES.get(dtype, 4)
        if size < LEAST:
            continue
        if operand in names:
            found["came"].append((names[operand], size))
        elif operand in after or (computation in inside and "get-tuple-element" in operand):
            found["branches"].append((f"{dtype}[{dimensions}]", size))
    return found
