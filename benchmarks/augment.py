"""One random view of every image: ours against kornia, Pillow in processes, dm-pix and augmax.

    pip install -e '.[bench]'
    python -m benchmarks.augment [--cases 32 96 224] [--peers ssl_jax kornia Pillow dm-pix augmax]
                                 [--rounds 5] [--seconds 1.5] [--workers 2] [--out FILE]

The views are those of configs/simclr.py: `cifar10` at 32 pixels (no blur), `imagenet` at 96 and at
256 → 224. uint8 images in memory go in, float32 views in [0, 1] come out; all peers get the same
probabilities, strengths, interpolation and blur kernel from the policy. What a peer lacks stands
below the table. Ours runs as in the training step: mapped over the devices, on CPU one a core.
dm-pix and augmax are mapped the same way; Pillow has `workers` processes, each its share of the
batch, which write into shared memory, as torch's DataLoader does.

Every peer is a process of its own, so that thread pools do not meet; all have the malloc settings
of host.keep_memory_pages. In every round each of them works for `seconds` in turn while the others
sleep, so that a drift of the machine falls on all alike.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

PEERS = {  # and what they leave out of the policy
    "ssl_jax": "",
    "kornia": "one order of the four colour operations for a whole batch",
    "Pillow": "",
    "dm-pix": "crop (here jax.image), probabilities (here jnp.where), brightness factors "
    "(it adds), orders of the colour operations (here one)",
    "augmax": "aspects of the crop, bicubic, orders of the colour operations, contrast of an "
    "image's mean, saturation (computed, not used), sigmas (one, 3 taps)",
}
CASES = {  # size of the view: preset's policy, stored size, batch
    32: ("simclr_cifar", 32, 256),
    96: ("simclr", 96, 256),
    224: ("simclr", 256, 128),
}
# What host.keep_memory_pages sets, read by glibc itself: a process of torch's needs no JAX for it.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**63 - 1),
    "MALLOC_ARENA_MAX": "1",
}


def noise(stored: int, batch: int):
    """Images to work on: uint8 [batch, stored, stored, 3]. What they show takes no time."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, stored, stored, 3), dtype=np.uint8)


def serve(peer: str, policy: dict, stored: int, batch: int, seconds: float, workers: int) -> None:
    """Makes views whenever a line comes in; answers each with the seconds of every call.

    The first answer, before any line, says on what the peer runs, and which versions.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    images = noise(stored, batch)
    if peer == "kornia":
        run, facts = kornia(policy, images)
    elif peer == "Pillow":
        run, facts = pillow(policy, images, workers)
    else:
        make = {"ssl_jax": ours, "dm-pix": dm_pix, "augmax": augmax}[peer]
        run, facts = mapped(make, policy, images)
    run(0)
    start = time.perf_counter()
    run(1)
    calls = max(3, math.ceil(seconds / (time.perf_counter() - start)))
    print(json.dumps(facts), file=answers)
    done = 2
    for _ in sys.stdin:
        taken = []
        for i in range(done, done + calls):
            start = time.perf_counter()
            run(i)
            taken.append(time.perf_counter() - start)
        done += calls
        print(json.dumps(taken), file=answers)


def mapped(make, policy: dict, images):
    """A policy of `make`, views(key, images, axis), compiled over all devices: (run, facts)."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec as P

    from ssl_jax.devices import layout
    from ssl_jax.processes import host

    host.set_cpu_devices(host.cpu_devices(len(images), 1, host.Cluster(1, 0, 1)))
    mesh = layout.mesh()
    views = make(policy, images.shape[1])  # augmax computes in it: not before the devices are made

    def step(i, images):
        key = jax.random.fold_in(jax.random.key(0), i)
        return views(key, images, layout.AXIS)

    rows = P(layout.AXIS)
    f = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), rows), out_specs=rows, check_vma=False)
    )
    on_device = layout.put_split(images, mesh)
    facts = {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "versions": versions("jax", "jaxlib", "dm-pix", "augmax"),
    }
    return lambda i: jax.block_until_ready(f(np.int32(i), on_device)), facts


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    return {p: importlib.metadata.version(p) for p in packages}


def ours(policy: dict, stored: int):
    """The policy as the methods draw it."""
    from ssl_jax import augment

    p = augment.make("none", **policy)
    return lambda key, images, axis: augment.crops((p,), key, images, axis)[:, 0]


def one_by_one(view):
    """view(key, image [H, W, C]) of every image, each with the key of its row."""
    import jax

    from ssl_jax.devices import collectives

    def views(key, images, axis):
        return jax.vmap(view)(collectives.example_keys(key, len(images), axis), images)

    return views


def dm_pix(policy: dict, stored: int):
    """What dm-pix has of it, one operation after the other."""
    import dm_pix as pix
    import jax
    import jax.numpy as jnp

    p, size = policy, policy["size"]
    brightness, contrast, saturation = p["brightness"], p["contrast"], p["saturation"]

    def box(key):
        area, ratio, top, left = jax.random.uniform(key, (4,))
        area = stored**2 * (p["area"][0] + (p["area"][1] - p["area"][0]) * area)
        low, high = map(math.log, p["aspect"])
        ratio = jnp.exp(low + (high - low) * ratio)
        w = jnp.clip(jnp.round(jnp.sqrt(area * ratio)), 1, stored)
        h = jnp.clip(jnp.round(jnp.sqrt(area / ratio)), 1, stored)
        return jnp.floor(top * (stored - h + 1)), jnp.floor(left * (stored - w + 1)), h, w

    def view(key, image):
        keys = iter(jax.random.split(key, 11))
        top, left, h, w = box(next(keys))
        scale = jnp.stack([size / h, size / w])
        x = jax.image.scale_and_translate(
            image.astype(jnp.float32) / 255,
            (size, size, 3),
            (0, 1),
            scale,
            -jnp.stack([top, left]) * scale,
            "cubic",
            p["antialias"],
        )
        x = pix.random_flip_left_right(next(keys), jnp.clip(x, 0, 1), probability=p["flip"])
        y = jnp.clip(pix.random_brightness(next(keys), x, brightness), 0, 1)
        y = pix.random_contrast(next(keys), y, max(0, 1 - contrast), 1 + contrast)
        y = jnp.clip(y, 0, 1)
        y = pix.random_saturation(next(keys), y, max(0, 1 - saturation), 1 + saturation)
        y = jnp.clip(pix.random_hue(next(keys), y, p["hue"]), 0, 1)
        x = jnp.where(jax.random.bernoulli(next(keys), p["jitter"]), y, x)
        y = pix.rgb_to_grayscale(x, keep_dims=True)
        x = jnp.where(jax.random.bernoulli(next(keys), p["gray"]), y, x)
        if p["blur"]:
            low, high = p["sigma"]
            sigma = jax.random.uniform(next(keys), minval=low, maxval=high)
            y = pix.gaussian_blur(x, sigma, 2 * p["blur_radius"] + 1)
            x = jnp.where(jax.random.bernoulli(next(keys), p["blur"]), y, x)
        return x

    return one_by_one(view)


def augmax(policy: dict, stored: int):
    """What augmax has of it, as its chain."""
    import augmax

    p, size = policy, policy["size"]
    zooms = [size / stored / math.sqrt(area) for area in reversed(p["area"])]
    blur = [augmax.GaussianBlur(sum(p["sigma"]) / 2, p["blur"])] if p["blur"] else []
    chain = augmax.Chain(
        augmax.ByteToFloat(),
        augmax.RandomSizedCrop(size, size, zooms, prevent_underzoom=False),
        augmax.HorizontalFlip(p["flip"]),
        augmax.ColorJitter(p["brightness"], p["contrast"], p["saturation"], p["hue"], p["jitter"]),
        augmax.RandomGrayscale(p["gray"]),
        *blur,
    )
    return one_by_one(chain)


def kornia(policy: dict, images):
    """The policy in kornia's operations, on as many threads as cores, or on the GPU."""
    import torch
    from kornia import augmentation as k
    from torch import nn

    torch.set_num_threads(cores())
    p, size = policy, policy["size"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    each = {"same_on_batch": False}
    blur = []
    if p["blur"]:
        side = 2 * p["blur_radius"] + 1
        border = {"zero": "constant", "reflect": "reflect", "edge": "replicate"}
        border = border[p["blur_padding"]]
        sigma = tuple(p["sigma"])
        blur = [k.RandomGaussianBlur((side, side), sigma, border, p=p["blur"], **each)]
    augment = nn.Sequential(
        k.RandomResizedCrop(
            (size, size),
            tuple(p["area"]),
            tuple(p["aspect"]),
            resample=p["interpolation"],
            cropping_mode="slice",  # the fast one, its documentation says
            **each,
        ),
        k.RandomHorizontalFlip(p=p["flip"], **each),
        k.ColorJitter(
            *(p[name] for name in ("brightness", "contrast", "saturation", "hue")),
            p=p["jitter"],
            **each,
        ),
        k.RandomGrayscale(p=p["gray"], **each),
        *blur,
    ).to(device)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

    def run(i):
        with torch.inference_mode():
            augment(x.float() / 255)
            if device == "cuda":
                torch.cuda.synchronize()

    name = torch.cuda.get_device_name() if device == "cuda" else f"{cores()} threads"
    return run, {"device": name, "versions": versions("torch", "kornia")}


def pillow(policy: dict, images, workers: int):
    """The policy as torchvision's transforms do it on Pillow images, in `workers` processes."""
    import multiprocessing

    import numpy as np
    from PIL import Image

    fork = multiprocessing.get_context("fork")
    batch, size = len(images), policy["size"]
    shared = fork.RawArray("f", batch * size * size * 3)
    views = np.frombuffer(shared, np.float32).reshape(batch, size, size, 3)
    parts = np.array_split(np.arange(batch), workers)
    pipes = []
    for part in parts:
        here, there = fork.Pipe()
        pictures = [Image.fromarray(images[i]) for i in part]
        out = views[part[0] : part[-1] + 1]
        process = fork.Process(target=pillow_worker, args=(there, pictures, out, policy))
        process.daemon = True  # ends with this one
        process.start()
        pipes.append(here)

    def run(i):
        for pipe in pipes:
            pipe.send(i)
        for pipe in pipes:
            pipe.recv()

    return run, {"device": f"{workers} processes", "versions": versions("pillow", "numpy")}


def pillow_worker(pipe, pictures: list, out, policy: dict) -> None:
    """Fills `out` [b, s, s, 3] with a view of each picture, whenever a number comes in."""
    import random

    import numpy as np

    while True:
        r = random.Random(pipe.recv())
        for i, picture in enumerate(pictures):
            np.multiply(np.asarray(pillow_view(picture, policy, r)), np.float32(1 / 255), out[i])
        pipe.send(None)


def pillow_view(image, p: dict, r):
    """One view of a Pillow image: RandomResizedCrop, flip, ColorJitter, grayscale, blur.

    The blur is Pillow's own, as in MoCo's and SimSiam's official code.
    """
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter

    def hue(image, delta):
        h, s, v = image.convert("HSV").split()
        h = np.asarray(h) + np.uint8(int(delta * 255) % 256)  # wraps around
        return Image.merge("HSV", (Image.fromarray(h), s, v)).convert("RGB")

    def factor(strength):
        return r.uniform(max(0, 1 - strength), 1 + strength)

    top, left, h, w = torchvision_box(*image.size[::-1], p["area"], p["aspect"], r)
    resample = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[p["interpolation"]]
    image = image.crop((left, top, left + w, top + h)).resize((p["size"],) * 2, resample)
    if r.random() < p["flip"]:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    if r.random() < p["jitter"]:
        for operation in r.sample(range(4), 4):
            if operation == 0:
                image = ImageEnhance.Brightness(image).enhance(factor(p["brightness"]))
            elif operation == 1:
                image = ImageEnhance.Contrast(image).enhance(factor(p["contrast"]))
            elif operation == 2:
                image = ImageEnhance.Color(image).enhance(factor(p["saturation"]))
            else:
                image = hue(image, r.uniform(-p["hue"], p["hue"]))
    if r.random() < p["gray"]:
        gray = image.convert("L")
        image = Image.merge("RGB", (gray, gray, gray))
    if r.random() < p["blur"]:
        image = image.filter(ImageFilter.GaussianBlur(r.uniform(*p["sigma"])))
    return image


def torchvision_box(height: int, width: int, area, aspect, r) -> tuple[int, int, int, int]:
    """Top, left, height, width as RandomResizedCrop.get_params draws them in a square image."""
    for _ in range(10):
        target = height * width * r.uniform(*area)
        ratio = math.exp(r.uniform(*map(math.log, aspect)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return r.randint(0, height - h), r.randint(0, width - w), h, w
    return 0, 0, height, width


def cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0))


def policy_of(case: int) -> dict:
    """The preset's policy as plain numbers, the blur radius worked out."""
    from ssl_jax.augment import policies

    p = policies.make(CASES[case][0], case)
    return p._replace(blur_radius=policies.blur_radius(p))._asdict()


def start(peer: str, case: int, seconds: float, workers: int) -> subprocess.Popen:
    """A process that serves this peer."""
    asked = {"policy": policy_of(case), "seconds": seconds, "workers": workers}
    asked |= dict(zip(("stored", "batch"), CASES[case][1:], strict=True))
    # On a GPU all of them share the card.
    environment = {**os.environ, **MALLOC, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.augment", "--serve", peer, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def answer(peer: str, process: subprocess.Popen):
    """The next line of a process.

    Raises:
      SystemExit: it has ended.
    """
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{peer} failed")
    return json.loads(line)


def measure(case: int, a: argparse.Namespace) -> dict[str, dict]:
    """{peer: {'device', 'versions', 'rounds': seconds of every call, round by round}}."""
    found, processes = {}, {}
    try:
        for peer in a.peers:  # one after the other: they compile
            processes[peer] = start(peer, case, a.seconds, a.workers)
            found[peer] = {**answer(peer, processes[peer]), "rounds": []}
        for _ in range(a.rounds):
            for peer, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                found[peer]["rounds"].append(answer(peer, process))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    return found


def table(found: dict[int, dict[str, dict]]) -> str:
    """Markdown: a line for each peer of each case.

    A round's figure is the median of its calls. The ratio is that of our median over the rounds to
    the peer's; in brackets the range of the ratios within a round.
    """
    median = statistics.median
    lines = [
        "| pixels | batch | | on | images/s | ours / theirs |",
        "|---|---|---|---|---|---|",
    ]
    for case, peers in found.items():
        _, stored, batch = CASES[case]
        rates = {peer: [batch / median(r) for r in f["rounds"]] for peer, f in peers.items()}
        base = next(iter(rates.values()))
        for peer, rate in rates.items():
            ratios = [x / y for x, y in zip(base, rate, strict=True)]
            pixels = f"{case}" if stored == case else f"{stored} → {case}"
            cells = [
                *(pixels, f"{batch}", peer, peers[peer]["device"]),
                f"{median(rate):,.0f} ({min(rate):,.0f} … {max(rate):,.0f})",
                f"× {median(base) / median(rate):.2f} ({min(ratios):.2f} … {max(ratios):.2f})",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"{peer} is without: {PEERS[peer]}." for peer in rates if PEERS[peer]]
    return "\n".join(lines)


def main() -> None:
    """Runs the cases, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", type=int, choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a peer in a round")
    parser.add_argument("--workers", type=int, default=2, help="processes of Pillow")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every call")
    parser.add_argument("--serve", nargs=2, metavar=("PEER", "JSON"), help="in this process")
    a = parser.parse_args()
    if a.serve:
        serve(a.serve[0], **json.loads(a.serve[1]))
        return
    before = os.getloadavg()[0]
    found = {case: measure(case, a) for case in a.cases}
    load = (before, os.getloadavg()[0])
    known = {
        k: v for peers in found.values() for f in peers.values() for k, v in f["versions"].items()
    }
    command = " ".join(["python -m benchmarks.augment", *sys.argv[1:]])
    print(f"{command}: {cores()} cores, load {load[0]:.1f} before and {load[1]:.1f} after,")
    print(", ".join(f"{k} {v}" for k, v in known.items()) + ";")
    print(f"median (least … most) of {a.rounds} rounds\n\n{table(found)}")
    if a.out:
        asked = {"command": command, "cores": cores(), "load": load, "versions": known}
        a.out.write_text(json.dumps({**asked, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
