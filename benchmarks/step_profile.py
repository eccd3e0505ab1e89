"""What a training step spends its time on, and how far that is from what the device could do.

    python -m benchmarks.step_profile [--cases resnet18 vit_tiny] [--top 15] [--out FILE]
    python -m benchmarks.step_profile --device gpu [--cases …]            # one GPU, bfloat16
    python -m benchmarks.step_profile --device gpu --tiny                 # that, on any CPU

Our step of a case of benchmarks.step, in a process of its own: timed, then traced by jax.profiler
for a few steps, back to back. Every kernel is put down to the operation of XLA's program that
started it, and that to the part of the step it comes from, by its name in JAX. Where several run at
once, each is given an equal part of the time; so the parts, and the gaps in which the device had
nothing to do, add up to the step.

Two limits: FLOP (benchmarks.step.flops) at the device's peak, and bytes (what every operation reads
and writes, as often as it ran) at the speed of its memory. The larger time is the least that this
program could take; fusing more would make fewer bytes. On a GPU the peaks are its data sheet's
(benchmarks.step.PEAKS), and those reached by a plain product and a plain copy are measured beside
them. On a CPU they are measured, before and after the trace: numpy's product of float32 matrices of
1024², a copy by all cores. Beside other programs they come out too low.

CUDA graphs are off in a profile (`--xla_gpu_enable_command_buffer=`): kernels in them lose the name
of their operation (openxla/xprof#3070). benchmarks.step has them as they are.
On a CPU a device is a thread or more, and what XLA's convolutions leave to other threads is not
traced: there 'idle' is waiting for them, too, and a collective includes waiting for the other
devices.
"""

import argparse
import glob
import json
import os
import pathlib
import sys
import tempfile
import time

from kit.profile import flops as counted
from kit.profile.report import report
from kit.profile.trace import read_trace, summarise

from benchmarks import assembled, harness, step, step_cases


def cpu_peaks() -> tuple[float, float]:
    """(FLOP/s of numpy's float32 product of 1024², bytes/s read and written by a copy)."""
    from concurrent import futures

    import numpy as np

    x = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    best = min(_seconds(lambda: x @ x) for _ in range(20))
    cores = len(os.sched_getaffinity(0))
    source = np.ones((cores, 2**24), np.float32)  # 64 MiB a core
    target = np.zeros_like(source)
    with futures.ThreadPoolExecutor(cores) as pool:

        def copy():
            list(pool.map(np.copyto, target, source))

        moving = min(_seconds(copy) for _ in range(10))
    return 2 * 1024**3 / best, 2 * source.nbytes / moving


def gpu_peaks() -> tuple[float, float]:
    """(FLOP/s of a bfloat16 product of 8192², bytes/s read and written by adding one to 1 GiB)."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)

    def rate(f, x):
        """Seconds of a call, of ten in a row; the fastest of three."""

        def ten():
            for _ in range(10):
                y = f(x)
            y.block_until_ready()

        ten()
        return min(_seconds(ten) for _ in range(3)) / 10

    flops = 2 * 8192**3 / rate(product, x)
    big = jnp.zeros(2**29, jnp.bfloat16)
    return flops, 2 * big.nbytes / rate(add, big)


def _seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(c, steps: int, top: int, gpu: bool, keep: str | None) -> dict:
    """Our step, timed and traced, in this process.

    Args:
      c: config.
      steps: traced, and timed before.
      top: operations to name.
      gpu: there must be one.
      keep: folder for the trace and the program; None: they are not kept.

    Returns:
      that of `summarise` with 'untraced': seconds of a step before, 'flops', 'views_flops',
      'peaks': (FLOP/s, bytes/s) of all devices by the data sheet, or None, 'measured': as measured
      here, 'outline': of the trace, 'device', 'versions', 'batch', 'dtype'.

    Raises:
      SystemExit: there is no GPU, or the trace has no events of a device.
    """
    from ssl_jax.processes import host

    host.keep_memory_pages()
    import jax

    if gpu and jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; --device gpu --tiny tries the harness without one")
    e, state, batch = assembled.fixed(c)
    # Before the trace: CUPTI may leave a context in which nothing runs any more (jax-ml/jax#40260).
    on_cpu, count = jax.default_backend() == "cpu", jax.device_count()
    device = f"{count} × {jax.devices()[0].device_kind}"
    peaks = None if on_cpu else counted.peak_of(device)
    measured = cpu_peaks() if on_cpu else tuple(count * x for x in gpu_peaks())
    traced = e.step.trace(state, batch)
    platform = "cpu" if on_cpu else "cuda"
    flops = [counted.flops(traced.jaxpr, platform, scope) for scope in ("", "views")]
    compiled = traced.lower().compile()

    def run():
        nonlocal state
        for _ in range(steps):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)

    run()
    untraced = min(_seconds(run) for _ in range(3)) / steps
    text = compiled.as_text()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = keep or folder
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        files = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
        events, outline = read_trace(max(files, key=os.path.getmtime)) if files else ([], [])
    if keep:
        (pathlib.Path(folder) / "step.hlo").write_text(text)
    if not events:
        sys.exit("\n".join(["no event of a device is in the trace:", *outline, "nothing to say"]))
    found = summarise(events, text, steps, top)
    if on_cpu:  # and again, lest another program ran beside the first try
        measured = tuple(map(max, measured, cpu_peaks()))
    return found | {
        "untraced": untraced,
        "flops": flops[0],
        "views_flops": flops[1],
        "peaks": peaks and tuple(count * x for x in peaks),
        "measured": measured,
        "outline": outline,
        "device": device,
        "versions": {"jax": jax.__version__},
        "batch": c.batch,
        "dtype": c.model.dtype,
    }


def run_case(text: str, a: argparse.Namespace) -> dict:
    """A profile in a process of its own; flags device, steps, top, tiny, keep and limit."""
    words = harness.again(a, "top", "tiny", "steps", "keep")
    return step.launch("benchmarks.step_profile", text, words, a.device, a.limit)


def main() -> None:
    """One case after the other, prints the tables, writes JSON after each."""
    parser = step_cases.flags(__doc__)
    parser.add_argument("--steps", type=int, help="traced; default 2, on a GPU 5")
    parser.add_argument("--top", type=int, default=15, help="operations to name")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the traces and programs")
    a = harness.parse(parser)
    if a.measure:
        if a.device == "gpu":
            asked = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{asked} --xla_gpu_enable_command_buffer=".strip()
        keep = a.keep and str(a.keep / time.strftime("%H%M%S"))
        steps = a.steps or (2 if a.device == "cpu" else 5)
        gpu = a.device == "gpu" and not a.tiny
        print(json.dumps(measure(step_cases.read(), steps, a.top, gpu, keep)))
        return
    cases = a.cases or step_cases.ON[a.device]
    results = {}
    for case, text in step_cases.describe(cases, a.batch, a.tiny).items():
        results[case] = r = run_case(text, a)
        print(f"### {case}\n\n{r['failed']}" if "failed" in r else report(case, r), end="\n\n")
        sys.stdout.flush()
        harness.write(a.out, results)
    if any("failed" in r for r in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
