"""The parts of the benchmarks of a step that need no clock: counting, dividing, searching."""
