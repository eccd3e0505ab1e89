"""All that a GPU is asked for, in one command and a given time.

    python -m benchmarks.gpu --out FOLDER [--cases …] [--parts steps profile] [--seconds 600]
    python -m benchmarks.gpu --out FOLDER --tiny                          # that, on any CPU

The parts, in this order, as far as the time goes:

    steps     one measurement of our step and one of the peer's, then a profile, case by case
    resident  small images: streamed or in device memory, one step or ten a call
    remat     SimCLR's ResNet-50 and MAE's ViT-B/16 again with config.model.remat: memory and time
    again     two further rounds of the measurements, for the spread
    largest   the largest batch that fits, of ours and the peer

(`profile` leaves profiles out where it is not among --parts.) Every measurement is a process of its
own with a time limit of its own, one at a time; what fails is said and costs nothing else. After
each, FOLDER/gpu.json and FOLDER/gpu.md are written anew: what was cut off is lost, no more.

Compiling takes most of the time: a first measurement autotunes and compiles. XLA's and torch's
compilation caches are shared by all processes of a call (--cache; a temporary folder), so later
rounds of a case compile nothing; a profile, without CUDA graphs, compiles once more, on the tuned
choices. The report says what starting, compiling and measuring took.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from kit.profile.planning import plan
from kit.profile.report import report as profile_report

from benchmarks import harness, step, step_cases, step_profile, tables

PARTS = ("steps", "profile", "resident", "remat", "again", "largest")
LEAST = 20  # seconds below which nothing more is started


def card() -> str:
    """What nvidia-smi says of the card before the first measurement; '' without it."""
    fields = "name,driver_version,memory.used,memory.total,utilization.gpu,clocks.sm,power.draw"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def one(part: str, text: str, peer: str, a: argparse.Namespace, remaining: float) -> dict:
    """A measurement of `plan` in the remaining seconds; {'failed': why} if it came to nothing."""
    share = 4 if part == "largest" else 1  # that is four processes
    limit = min(a.most, remaining / share)
    if part == "resident":
        return resident(a.tiny, min(4 * a.most, remaining))  # four processes
    a = argparse.Namespace(**vars(a), limit=limit, device="gpu", compile=False, keep=None)
    if part == "profile":
        return step_profile.run_case(text, argparse.Namespace(**{**vars(a), "steps": None}))
    if part == "largest":
        return step.largest(peer, text, a)
    if part == "remat":
        c = json.loads(text)
        c["model"]["remat"] = True
        text = json.dumps(c)
    return step.run_peer(peer, text, a)


def resident(tiny: bool, limit: float) -> dict:
    """benchmarks.resident, one round: {'table': Markdown}."""
    words = ["--rounds", "1", "--tiny"]
    if not tiny:
        words = ["--rounds", "1", "--config", "configs/simclr.py:cifar10", "--batch", "1024"]
        words += ["--examples", "50000", "--dtype", "bfloat16"]
    found = harness.attempt("benchmarks.resident", words, limit=limit)
    return found if "failed" in found else {"table": found["output"]}


def rounds(done: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """{case: {peer: measurements}} of the parts 'steps' and 'again', as `step.table` wants them."""
    found = {}
    for d in done:
        if d["part"] in ("steps", "again"):
            runs = found.setdefault(d["case"], {p: [] for p in step.PEERS}).setdefault(
                d["peer"], []
            )
            runs += [d["result"]] if "failed" not in d["result"] else []
    return {case: {p: runs for p, runs in peers.items() if runs} for case, peers in found.items()}


def remat_table(done: list[dict]) -> str:
    """Markdown: memory and time with and without rematerialisation."""
    rows = []
    for d in done:
        if d["part"] != "remat" or "failed" in d["result"]:
            continue
        plain = rounds(done).get(d["case"], {}).get("ssl_jax", [])[:1]
        for name, r in [*(("no", r) for r in plain), ("yes", d["result"])]:
            gib = (f"{(r[k] or 0) / 2**30:.2f}" for k in ("program", "memory"))
            rows.append([d["case"], name, f"{1e3 * r['seconds']:,.1f}", *gib])
    columns = ("case", "remat", "step (ms)", "program (GiB)", "peak of the allocator (GiB)")
    return tables.table(columns, rows)


def spent(done: list[dict]) -> str:
    """Markdown: seconds of every measurement, in starting, compiling and the rest."""
    rows = []
    for d in done:
        r = d["result"]
        cells = [f"{r[k]:.0f}" if k in r else "" for k in ("started", "compiled")]
        rows.append([d["part"], d["case"], d["peer"], f"{d['seconds']:.0f}", *cells])
    columns = ("part", "case", "", "seconds", "preparing, without imports", "compiling")
    return tables.table(columns, rows)


def report(found: dict) -> str:
    """All of a call in Markdown."""
    done = found["done"]
    text = [f"# {found['card'] or 'No GPU'}", "", found["command"], ""]
    versions = {}
    for d in done:
        versions |= d["result"].get("versions", {})
    text += [", ".join(f"{name} {v}" for name, v in versions.items()), ""]
    steps = rounds(done)
    for case, peers in steps.items():
        counts = {peer: runs[0]["parameters"] for peer, runs in peers.items()}
        if len(set(counts.values())) > 1:
            text += [f"**{case}: not the same network, the parameters are {counts}.**", ""]
    if steps:
        text += [f"Batches: {found['batches']}", "", step.table(steps, found["batches"]), ""]
    failed = [d for d in done if "failed" in d["result"]]
    text += [f"{d['part']}, {d['case']}, {d['peer']}: {d['result']['failed']}\n" for d in failed]
    if found["left"]:
        left = ", ".join(" ".join(x) for x in found["left"])
        text += [f"Left out for want of time: {left}.", ""]
    for d in done:
        if d["part"] == "resident" and "failed" not in d["result"]:
            text += ["## Images in device memory", "", d["result"]["table"], ""]
    if any(d["part"] == "remat" for d in done):
        text += ["## Rematerialisation", "", remat_table(done), ""]
    fits = {}
    for d in done:
        if d["part"] == "largest" and "failed" not in d["result"]:
            fits.setdefault(d["case"], {})[d["peer"]] = d["result"]
    if fits:
        text += ["## Largest batch", "", step.largest_table(fits), ""]
    for d in done:
        if d["part"] == "profile" and "failed" not in d["result"]:
            text += [profile_report(d["case"], d["result"]), ""]
    return "\n".join([*text, "## What the time of this call went to", "", spent(done), ""])


def save(folder: pathlib.Path, found: dict) -> None:
    """Writes gpu.json and gpu.md anew."""
    harness.write(folder / "gpu.json", found)
    harness.replace(folder / "gpu.md", report(found))


def main() -> None:
    """Goes through the plan while there is time."""
    cases = step_cases.ON["gpu"]
    parser = harness.parser(__doc__, out="folder of the report")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--peers", nargs="+", choices=step.PEERS, default=list(step.PEERS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=600, help="for all")
    parser.add_argument("--most", type=float, default=200, help="seconds for one measurement")
    parser.add_argument("--steps", type=int, default=3, help="looks at the clock in a measurement")
    parser.add_argument("--each", type=int, help="steps between two; default 10")
    parser.add_argument("--top", type=int, default=15, help="operations that a profile names")
    parser.add_argument("--batch", type=int, help="images of a step, instead of the case's")
    parser.add_argument("--gib", type=float, help="memory for the largest batch; default: all")
    parser.add_argument("--cache", type=pathlib.Path, help="of compiled programs")
    a = harness.parse(parser)
    if a.out is None:
        parser.error("--out FOLDER: where the report shall be")
    start = time.monotonic()
    if a.tiny and a.gib is None:
        a.gib = 1.0
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = (a.cache or pathlib.Path(folder)).absolute()
        os.environ["XDG_CACHE_HOME"] = str(cache)  # host.set_compile_cache
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
        texts = step_cases.describe(a.cases, a.batch, a.tiny)
        found = {
            "command": "python -m benchmarks.gpu " + " ".join(sys.argv[1:]),
            "card": card(),
            "batches": {case: json.loads(text)["batch"] for case, text in texts.items()},
            "done": [],
            "left": [],
        }
        for part, case, peer in plan(a.cases, a.peers, a.parts):
            remaining = a.seconds - (time.monotonic() - start)
            if remaining < LEAST:
                found["left"].append((part, case, peer))
                continue
            began = time.monotonic()
            try:
                result = one(part, texts[case], peer, a, remaining)
            except Exception as error:  # a measurement costs only itself, whatever it printed
                result = {"failed": f"{type(error).__name__}: {error}"}
            took = time.monotonic() - began
            done = {"part": part, "case": case, "peer": peer, "seconds": took, "result": result}
            found["done"].append(done)
            said = result.get("failed") or (
                f"{1e3 * result['seconds']:,.1f} ms"
                if "seconds" in result
                else result.get("batch", "done")
            )
            print(f"{part}, {case}, {peer}: {said} ({took:.0f} s)", flush=True)
            save(a.out, found)
        save(a.out, found)
    print(f"\n{report(found)}")
    if any("failed" in d["result"] for d in found["done"]) or found["left"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
