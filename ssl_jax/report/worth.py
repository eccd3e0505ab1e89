"""What accuracies are worth: the images that they are of, and those of what was there before."""

from collections.abc import Mapping
from typing import Any

PROBES = {"knn_top1": "kNN", "linear_top1": "the linear probe"}


def baselines(result: Mapping[str, Any]) -> dict[str, str]:
    """Names of the baselines of a result.json: its key -> in words.

    What 'pixels' holds of examples that are no images is their raw data.
    """
    raw = "raw pixels" if of_images(result) else "raw data"
    return {"pixels": raw, "untrained": "the untrained encoder"}


def noun(result: Mapping[str, Any]) -> str:
    """'images', or 'examples' of anything else."""
    return "images" if of_images(result) else "examples"


def of_images(result: Mapping[str, Any]) -> bool:
    """Whether the examples of a result.json are images; one that does not say is of images."""
    fields = result.get("fields")
    return not isinstance(fields, list) or not fields or "image" in fields


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
            for part, name in baselines(result).items()
        }
        better = [
            f"{100 * value:.1f} % of {name}"
            for name, value in others.items()
            if None not in (learned, value) and learned < value
        ]
        if better:
            found.append(f"{probe} reaches {100 * learned:.1f} %, below {' and '.join(better)}")
    return f"Training did not pay: {'; '.join(found)}." if found else None


def judged(result: Mapping[str, Any]) -> bool:
    """Whether there were labels to judge by, although a probe may have failed."""
    rows = [result, *result.get("baselines", {}).values()]
    measured = any(row.get(key) is not None for row in rows for key in PROBES)
    return measured or bool(problems(result))


def sample(result: Mapping[str, Any]) -> str | None:
    """Says of how many examples the accuracies of a run are.

    Args:
      result: a result.json.

    Returns:
      'learned from 50,000 of 1,281,167 training images, judged on 50,000 test images'; None of a
      run without accuracies, or one that is older than these counts.
    """
    learn, judge = result.get("train_examples"), result.get("test_examples")
    if not learn or not judge:
        return None
    what = noun(result)
    kind = "test" if result.get("judged_on") == "test" else "held-out training"

    def of(used: int, there: int | None) -> str:
        return f"{used:,} of {there:,}" if there and there > used else f"{used:,}"

    whole = result.get("train_set"), result.get("test_set")
    return (
        f"learned from {of(learn, whole[0])} training {what}, judged on {of(judge, whole[1])} "
        f"{kind} {what}"
    )


def problems(result: Mapping[str, Any]) -> list[str]:
    """What could not be measured at the end, and why, a line each.

    Args:
      result: a result.json; one that is older than the field has none.
    """
    found = result.get("problems")
    named = {**baselines(result), "learned": "the learned features"}
    if not isinstance(found, Mapping):
        return []
    return [f"Could not be measured on {named.get(k, k)}: {why}" for k, why in found.items()]
