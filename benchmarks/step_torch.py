"""The peer of benchmarks/step.py: the same step in PyTorch, views by kornia. Without JAX.

    echo CONFIG_AS_JSON | python -m benchmarks.step_torch --measure [--device gpu]

Networks, heads and losses are those of the config, written as PyTorch's users write them: modules
of torch.nn, scaled_dot_product_attention, channels_last for convolutions, fused optimizers.
"""

import ctypes
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":  # before anything allocates; see step.py
    libc = ctypes.CDLL("libc.so.6")
    for setting in ((-4, 0), (-1, -1), (-8, 1)):
        libc.mallopt(*setting)

import kornia
import torch
from torch import nn

from benchmarks import harness, step_cases, torch_methods


def choose(policies: nn.ModuleList, draw: Callable[[], Any]) -> str:
    """Lets kornia draw its random numbers where it is faster, or possible: 'cpu' or 'cuda'.

    (They are drawn on the CPU, and sent, until the policy itself is moved; moved, some of its
    generators fail.)
    """
    seconds = {}
    for place in ("cuda", "cpu"):
        try:
            policies.to(place)
            for i in range(4):
                if i == 1:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                draw()
            torch.cuda.synchronize()
            seconds[place] = time.perf_counter() - start
        except (RuntimeError, TypeError, ValueError) as error:
            print(f"kornia's draws on {place}: {error}", file=sys.stderr)
    best = min(seconds, key=seconds.get)
    policies.to(best)
    return best


def measure(c: dict[str, Any], steps: int, each: int, device: str, compiled: bool) -> dict:
    """The peer's step on a fixed batch; as benchmarks.step.measure.

    Args:
      c: config.
      steps: how often the clock is looked at.
      each: steps between two looks.
      device: 'cpu' or 'cuda'.
      compiled: by torch.compile.
    """
    began = time.perf_counter()
    torch.set_num_threads(harness.cores())
    torch.manual_seed(c["seed"])
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        # TF32 for float32 (kornia's views, the losses), as XLA does where nothing else is asked.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # On CPU kornia's slices are the faster crop, on a GPU a loop over images is none.
    cropping = "slice" if device == "cpu" else "resample"
    method = torch_methods.METHODS[c["method"]["name"]](c, cropping)
    layout = torch.channels_last if c["model"]["name"].startswith("resnet") else None
    method.modules.to(device)
    if layout:
        method.modules.to(memory_format=layout)
    params = [p for p in method.modules.parameters() if p.requires_grad]
    rule = torch_methods.optimizer(c["optimizer"], params)
    clip = c["optimizer"]["clip_per_parameter"]
    half = c["model"]["dtype"] == "bfloat16"
    loss_of = torch.compile(method.loss) if compiled else method.loss
    side, channels = c["data"]["size"], c["data"]["channels"]
    shape = (c["batch"], channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def draw():
        with torch.no_grad():
            views = method.draw(images.float().div_(255))
        return views.contiguous(memory_format=layout) if layout else views

    draws = choose(method.policies, draw) if device == "cuda" else "cpu"

    def step():
        method.before()
        views = draw()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss, kept = loss_of(views)
        loss.backward()
        if clip:
            gradients = [p.grad for p in params]
            lengths = torch._foreach_norm(gradients)
            torch._foreach_mul_(gradients, [(clip / (n + 1e-6)).clamp(max=1) for n in lengths])
        rule.step()
        rule.zero_grad(set_to_none=True)
        method.after(kept)
        return loss

    def wait(out):
        if device == "cuda":
            torch.cuda.synchronize()

    started = time.perf_counter() - began
    wait(step())
    first = time.perf_counter() - began - started  # compiles

    def warmed():
        if device == "cuda":  # what cuDNN took to try algorithms is not the step's
            torch.cuda.reset_peak_memory_stats()

    seconds, cpu, loss = harness.clock(step, steps, each, wait, warmed)
    if device == "cuda":
        memory, name = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
        limit = torch.cuda.mem_get_info()[1]
    else:
        memory = harness.proc("VmHWM")
        name, limit = f"{torch.get_num_threads()} threads", None
    if not math.isfinite(loss.item()):
        sys.exit(f"the peer's loss is {loss.item()}")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "views": harness.clock(draw, steps, each, wait, warmed)[0],
        "parameters": sum(p.numel() for p in params),
        "memory": memory,
        "limit": limit,
        "started": started,
        "compiled": first,
        "loss": loss.item(),
        "draws": draws,
        "device": name,
        "versions": {m.__name__: m.__version__ for m in (torch, kornia)},
    }


def main() -> None:
    """Reads a config, measures, prints JSON."""
    parser = step_cases.flags(__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--each", type=int, help="steps between two looks at the clock")
    parser.add_argument("--compile", action="store_true")
    a = harness.parse(parser)
    if not a.measure:
        parser.error("python -m benchmarks.step measures both sides")
    there = torch.cuda.is_available()
    if a.device == "gpu" and not there and not a.tiny:
        sys.exit("PyTorch finds no GPU here")
    device = "cuda" if a.device == "gpu" and there else "cpu"
    c = json.loads(sys.stdin.read())
    each = a.each or (1 if a.device == "cpu" else 10)
    print(json.dumps(measure(c, a.steps, each, device, a.compile or device == "cuda")))


if __name__ == "__main__":
    main()
