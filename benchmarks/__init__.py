"""Commands that measure: `python -m benchmarks.NAME`, each described in its first lines.

What they share with the tests is in tests/kit; it is put on the path here, as pytest does for the
tests (setup.cfg), so that it is the same module `kit` for both.
"""

import pathlib
import sys

sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "tests"))
