"""Fills in launch/kubernetes.yaml and prints it; touches nothing.

python launch/kubernetes.py --name digits --image IMAGE --claim runs --processes 2 --gpus 1 \
    -- --config configs/quickstart.py | kubectl apply -f -

Needs Python alone. What the placeholders mean is said in kubernetes.yaml.
"""

import argparse
import json
import pathlib
import re
import string
import sys

TEMPLATE = pathlib.Path(__file__).with_name("kubernetes.yaml")


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads and checks the command line; a mistake ends with one line and code 2."""
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("--name", required=True, help="of the JobSet; the workdir is /runs/NAME")
    parser.add_argument("--image", required=True)
    parser.add_argument("--claim", required=True, help="persistent volume claim, ReadWriteMany")
    parser.add_argument("--processes", type=int, required=True, help="pods")
    parser.add_argument("--gpus", type=int, default=0, help="of a pod (default 0)")
    parser.add_argument("--cpus", default="8", help="of a pod (default 8)")
    parser.add_argument("--memory", default="32Gi", help="of a pod (default 32Gi)")
    parser.add_argument("arguments", nargs="+", help="of ssl_jax.main, after --")
    values = parser.parse_args(argv)
    # Pods are called NAME-worker-0-INDEX-xxxxx, at most 63 letters.
    for name, text in (("--name", values.name), ("--claim", values.claim)):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
            mistake(f"{name} {text!r}: up to 40 of a-z, 0-9 and -, a letter first")
    if not re.fullmatch(r"[\w.:/@-]+", values.image):
        mistake(f"--image {values.image!r} is no image's name")
    if values.processes < 1 or values.gpus < 0:
        mistake("--processes is at least 1, --gpus at least 0")
    if not re.fullmatch(r"\d+m?", values.cpus):
        mistake(f"--cpus {values.cpus!r}: a number such as 8 or 500m")
    if not re.fullmatch(r"\d+[KMGT]i?", values.memory):
        mistake(f"--memory {values.memory!r}: a quantity such as 32Gi")
    return values


def mistake(text: str) -> None:
    """Ends with one line and code 2."""
    print(f"kubernetes.py: {text}", file=sys.stderr)
    sys.exit(2)


def render(values: argparse.Namespace, template: str) -> str:
    """The YAML with its placeholders filled in, without the comment on top.

    Args:
      values: from `parse`.
      template: text of kubernetes.yaml.
    """
    arguments = values.arguments
    if not any(a.startswith("--workdir") for a in arguments):
        arguments = [*arguments, f"--workdir=/runs/{values.name}"]
    body = re.sub(r"\A(#.*\n)+", "", template)
    # "$$" would be read by Kubernetes as "$", and "$(A)" as a variable: double every dollar.
    quoted = json.dumps([a.replace("$", "$$") for a in arguments], ensure_ascii=False)
    return string.Template(body).substitute(
        NAME=values.name,
        IMAGE=values.image,
        CLAIM=values.claim,
        PROCESSES=values.processes,
        GPUS=values.gpus,
        CPUS=values.cpus,
        MEMORY=values.memory,
        ARGUMENTS=quoted,
    )


if __name__ == "__main__":
    print(render(parse(sys.argv[1:]), TEMPLATE.read_text()), end="")
