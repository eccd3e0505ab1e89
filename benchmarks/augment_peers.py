"""The peers of benchmarks.augment: one policy as each library has it.

Each is made from the policy's fields; what a library lacks is in `benchmarks.augment.PEERS`. Those
for JAX are functions views(key, images, axis); those for the host are calls that make one batch.
"""

import math

from benchmarks import harness


def mapped(peer: str, policy: dict, images):
    """A policy of one of MAPPED, compiled over all devices: (run, facts)."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec as P

    from ssl_jax.devices import layout
    from ssl_jax.processes import host

    host.set_cpu_devices(host.cpu_devices(len(images), 1, host.Cluster(1, 0, 1)))
    mesh = layout.mesh()
    views = MAPPED[peer](
        policy, images.shape[1]
    )  # augmax computes in it: not before the devices are made

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
        "versions": harness.versions("jax", "jaxlib", *({peer} - {"ssl_jax"})),
    }
    return lambda i: jax.block_until_ready(f(np.int32(i), on_device)), facts


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


MAPPED = {"ssl_jax": ours, "dm-pix": dm_pix, "augmax": augmax}


def kornia(policy: dict, images):
    """The policy in kornia's operations, on as many threads as cores, or on the GPU."""
    import torch
    from kornia import augmentation as k
    from torch import nn

    torch.set_num_threads(harness.cores())
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

    name = torch.cuda.get_device_name() if device == "cuda" else f"{harness.cores()} threads"
    return run, {"device": name, "versions": harness.versions("torch", "kornia")}


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

    return run, {"device": f"{workers} processes", "versions": harness.versions("pillow", "numpy")}


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
