"""Whether training paid: accuracies of the learned features against what was there before."""

from collections.abc import Mapping
from typing import Any

PROBES = {"knn_top1": "kNN", "linear_top1": "the linear probe"}
BASELINES = {"pixels": "raw pixels", "untrained": "the untrained encoder"}


def warning(result: Mapping[str, Any]) -> str | None:
    """Names every probe that does better on raw pixels or on the untrained encoder.

    Args:
      result: a result.json.

    Returns:
      one line; None where no probe does, or none was run.
    """
    found = []
    for key, probe in PROBES.items():
        learned = result.get(key)
        others = {
            name: result.get("baselines", {}).get(part, {}).get(key)
            for part, name in BASELINES.items()
        }
        better = [
            f"{100 * value:.1f} % of {name}"
            for name, value in others.items()
            if None not in (learned, value) and learned < value
        ]
        if better:
            found.append(f"{probe} reaches {100 * learned:.1f} %, below {' and '.join(better)}")
    return f"Training did not pay: {'; '.join(found)}." if found else None
