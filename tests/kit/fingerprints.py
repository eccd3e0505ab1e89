"""Fingerprints of short runs of every method, written on one commit and compared on another.

    python tests/kit/fingerprints.py write FILE.json     # in the checkout before a change
    python tests/kit/fingerprints.py compare FILE.json   # in the one after it

A fingerprint is a hash of the whole training state. It depends on the processor and the versions,
so both commands belong on one machine and in one environment; that is why no file of them is kept
in the repository. Besides 12 steps of every method's `digits` preset on 1 and 2 devices and the
quickstart, it compares every preset's fields, as JSON: what a user's command means. (Fields that
came later are none of the earlier commit's.)
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

STEPS = 12
DEVICES = (1, 2)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", help="methods; all of them without it")
    parser.add_argument("--no-quickstart", action="store_true")
    parser.add_argument("--no-presets", action="store_true")
    a = parser.parse_args(argv)
    before = json.loads(a.file.read_text()) if a.what == "compare" else None
    found = {} if a.no_presets else {"presets": presets()}
    runs = [(f"configs/{m}.py:digits", d) for m in a.only or methods() for d in DEVICES]
    runs += [] if a.no_quickstart else [("configs/quickstart.py", None)]
    wrong = []
    for config, devices in runs:
        name = f"{config} on {devices or 'its own'} device(s)"
        found[name] = fingerprint(config, devices)
        known = None if before is None else before.get(name)
        verdict = "" if before is None else "equal" if known == found[name] else "DIFFERS"
        wrong += [name] if verdict == "DIFFERS" else []
        print(f"{name:<55} {found[name][:16]} {verdict}", flush=True)
    if before is not None and not a.no_presets:
        now, then = found["presets"], before["presets"]
        for preset in sorted({*now, *then}):
            for field, value in then.get(preset, {}).items():
                if now.get(preset, {}).get(field) != value:
                    print(f"{preset}: {field} was {value}", flush=True)
                    wrong.append(f"{preset} {field}")
    if before is None:
        a.file.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{len(runs)} runs, {len(wrong)} differences")
    return 1 if wrong else 0


def methods() -> list[str]:
    code = "from ssl_jax.methods import METHODS; print(*METHODS)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def presets() -> dict[str, dict[str, str]]:
    """config file:preset -> dotted field -> its value as JSON."""
    code = """
import json, pathlib
from ssl_jax.runs import config as configs
found = {}
for file in sorted(pathlib.Path("configs").glob("*.py")):
    module = configs.load_module(str(file))
    if not hasattr(module, "get_config"):  # what several share
        continue
    for preset in getattr(module, "PRESETS", None) or [""]:
        name = f"configs/{file.name}:{preset}".rstrip(":")
        found[name] = json.loads(configs.to_json(configs.load(name)[0]))
print(json.dumps(found))
"""
    if not pathlib.Path("ssl_jax/runs").exists():  # before the rooms
        code = code.replace("from ssl_jax.runs import", "from ssl_jax import")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name: dict(flat(config)) for name, config in json.loads(out.stdout).items()}


def flat(section: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested dictionaries as (dotted name, JSON of the value)."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)


def fingerprint(config: str, devices: int | None) -> str:
    """That of the state after a run: 12 steps on some devices, or all of it where they are None."""
    short = (
        f"--config.steps={STEPS}",
        f"--config.cpu_devices={devices}",
        "--config.monitor.every_steps=0",
        "--config.monitor.train_examples=200",
        "--config.monitor.test_examples=100",
        "--config.evaluate.train_examples=200",
        "--config.evaluate.test_examples=100",
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ssl_jax.main", "--config", config]
        command += [f"--workdir={folder}/run", "--config.report=False"]
        command += short if devices else ()
        if devices and pathlib.Path("ssl_jax/runs").exists():  # a freeze of DINO's is longer
            command += ["--config.recipe=keep"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return json.loads(pathlib.Path(folder, "run/result.json").read_text())["fingerprint"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
