"""What several tests use, and what the benchmarks use as well: never collected, never timed.

Tests find it as `kit` because pytest puts tests/ on the path (setup.cfg); `benchmarks/__init__.py`
does the same, so that both mean one and the same module and neither imports the other.
"""
