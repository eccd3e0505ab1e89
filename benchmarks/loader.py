"""A folder of JPEGs to batches on the host: ours, torch's DataLoader and Grain.

    pip install -e '.[bench]'
    python -m benchmarks.loader [--folder FOLDER] [--pictures 1536] [--sizes 224 256] [--batch 128]
                                [--images 3072] [--workers 2] [--rounds 5] [--out FILE]

Without `--folder` it makes one: pictures of 256 × 256 pixels at quality 90, cut at all scales out
of scikit-learn's two photographs, of changing brightness. From there all peers deliver the same:
shuffled batches of uint8 [batch, size, size, 3] with labels, the centred square of each picture
resized to `size`, the files in the page cache, nothing decoded kept between epochs. At 256 nothing
is resized: that is what our ImageNet presets read; their 224-pixel views are made on the device.

    ssl_jax            the loader of a run: one thread a core, each making a whole batch
    torch              DataLoader with `workers` processes, Pillow, the default collation
    grain threads      MapDataset.map(ours: decode).to_iter_dataset().batch(), Grain's own defaults
    grain processes    the same with mp_prefetch of `workers` processes

Grain has no decoder: it is given ours, so only the loaders differ. torch is used as its tutorials
do, with Pillow. Every measurement is a process of its own, the peers take turns; the first
batches, which fill the buffers, are not timed.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time

from benchmarks import harness, tables

PEERS = ("ssl_jax", "torch", "grain threads", "grain processes")
STORED = 256


def make_folder(folder: pathlib.Path, pictures: int, classes: int = 16) -> None:
    """JPEGs of 256 × 256 in sub-folders: places, scales, mirrors and brightness of two photos."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(x) for x in load_sample_images().images]  # 640 × 427
    r = np.random.default_rng(0)
    for i in range(pictures):
        photo = photos[i % len(photos)]
        side = int(r.integers(128, min(photo.size) + 1))
        left, top = (int(r.integers(0, n - side + 1)) for n in photo.size)
        picture = photo.crop((left, top, left + side, top + side)).resize((STORED, STORED))
        if r.integers(2):
            picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
        gain = r.uniform(0.7, 1.1)
        picture = picture.point([min(255, int(gain * v)) for v in range(256)] * 3)
        path = folder / f"class_{i % classes:02d}" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, quality=90)


def ours(folder: str, size: int, batch: int, workers: int):
    """Batches of the library's loader, as a run opens it, with nothing kept in memory."""
    from ssl_jax.data import loader, sources
    from ssl_jax.runs import config

    del workers
    data = config.defaults().data
    data.source, data.size, data.channels = f"folder:{folder}", size, 3
    data.labels, data.cache_bytes = True, 0
    source = sources.open_source(data, "train")
    made = loader.batches(source, seed=0, batch=batch, threads=data.threads, ahead=data.ahead)
    return ((b["image"], b["label"]) for b in made)


def torch(folder: str, size: int, batch: int, workers: int):
    """Batches of torch's DataLoader over a map-style data set that reads with Pillow."""
    import numpy as np
    import torch
    from PIL import Image

    paths, labels = listing(folder)

    class Pictures(torch.utils.data.Dataset):  # what torch wants of a data set
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            with Image.open(paths[i]) as image:
                image = image.convert("RGB")
            side = min(image.size)
            left, top = ((n - side) // 2 for n in image.size)
            if side != max(image.size):
                image = image.crop((left, top, left + side, top + side))
            if side != size:
                image = image.resize((size, size), Image.BILINEAR)
            return torch.from_numpy(np.array(image)), labels[i]

    data = Pictures()
    # One pass that never ends: no pause between epochs.
    sampler = torch.utils.data.RandomSampler(data, num_samples=1000 * len(data))
    return iter(
        torch.utils.data.DataLoader(
            data, batch, sampler=sampler, num_workers=workers, drop_last=True
        )
    )


def grain(folder: str, size: int, batch: int, workers: int):
    """Batches of Grain, decoded by our decoder; workers = 0: by Grain's threads."""
    import grain
    from absl import flags

    from ssl_jax.data.decode import picture as decode

    flags.FLAGS.mark_as_parsed()  # its processes read flags, which absl.app would have parsed

    paths, labels = listing(folder)

    def load(i):
        with open(paths[i], "rb") as file:
            return decode.decode(file.read(), size, 3), labels[i]

    data = grain.MapDataset.range(len(paths)).shuffle(seed=0).repeat().map(load)
    data = data.to_iter_dataset().batch(batch, drop_remainder=True)
    if workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(data)


def listing(folder: str) -> tuple[list[str], list[int]]:
    """Paths, and the number of each one's sub-folder."""
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("*/*.jpg"))
    names = sorted({os.path.dirname(path) for path in paths})
    return paths, [names.index(os.path.dirname(path)) for path in paths]


def measure(peer: str, folder: str, size: int, batch: int, images: int, workers: int) -> dict:
    """{'seconds', 'images'} of one peer in this process, from its first full buffers on."""
    if peer == "ssl_jax":
        from ssl_jax.processes import host

        host.keep_memory_pages()  # as ssl_jax.main does
        made = ours(folder, size, batch, workers)
    elif peer == "torch":
        made = torch(folder, size, batch, workers)
    else:
        made = grain(folder, size, batch, workers if peer == "grain processes" else 0)
    warm = -(-1024 // batch)  # more than any of them has in its buffers (Grain: 500 pictures)
    for x, labels in itertools.islice(made, warm):
        if tuple(x.shape) != (batch, size, size, 3) or len(labels) != batch:
            sys.exit(f"{peer} gave {tuple(x.shape)} and {len(labels)} labels")
    count = -(-images // batch)
    start = time.perf_counter()
    for _ in itertools.islice(made, count):
        pass
    return {"seconds": time.perf_counter() - start, "images": count * batch}


def launch(a: argparse.Namespace, folder: str, size: int, peer: str) -> dict:
    """`measure` in a process of its own."""
    words = ["--measure", peer, "--folder", folder, "--sizes", str(size)]
    # Grain's processes, ended in the middle of an epoch, warn of shared memory that is gone.
    environment = {**harness.MALLOC, "PYTHONWARNINGS": "ignore"}
    more = harness.again(a, "batch", "images", "workers")
    return harness.measured("benchmarks.loader", *words, *more, environment=environment)


def lines(found: dict[tuple[int, str], list[dict]], first: str) -> list[list[str]]:
    """A line for each peer at each size; ratios are ours, the first's, to theirs."""
    rates = {case: [r["images"] / r["seconds"] for r in runs] for case, runs in found.items()}
    return [
        [size, peer, tables.middle(rate, 0), tables.ratio(rates[size, first], rate)]
        for (size, peer), rate in rates.items()
    ]


def main() -> None:
    """Runs the peers in turn, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--folder", help="JPEGs in sub-folders; none: one is made")
    parser.add_argument("--pictures", type=int, default=1536, help="in the folder that is made")
    sizes = {"type": int, "nargs": "+", "default": [224, STORED]}
    parser.add_argument("--sizes", **sizes, help="of the pictures in a batch, pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=3072, help="timed in a measurement")
    parser.add_argument("--workers", type=int, default=2, help="processes of torch and of Grain")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--measure", choices=PEERS, help="this peer, once, in this process")
    a = harness.parse(parser, pictures=64, images=128, batch=32, sizes=[224])
    if a.measure:
        (size,) = a.sizes
        print(json.dumps(measure(a.measure, a.folder, size, a.batch, a.images, a.workers)))
        return
    with tempfile.TemporaryDirectory() as made:
        if a.folder is None:
            make_folder(pathlib.Path(made), a.pictures)
        folder, before = a.folder or made, os.getloadavg()[0]
        cases = [(size, peer) for size in a.sizes for peer in a.peers]
        found = harness.in_turn(cases, a.rounds, lambda case: launch(a, folder, *case))
        paths, _ = listing(folder)
        mean = sum(map(os.path.getsize, paths)) / len(paths)
    packages = ["simplejpeg", "opencv-python-headless", "numpy"]
    packages += ["torch", "pillow"] if "torch" in a.peers else []
    packages += ["grain"] if any(peer.startswith("grain") for peer in a.peers) else []
    asked = harness.setting("benchmarks.loader", before, harness.versions(*packages))
    print(f"{len(paths):,} pictures of {mean / 1e3:.1f} kB, batches of {a.batch},")
    print(f"median (least … most) of {a.rounds} rounds of {a.images:,} images\n")
    print(tables.table(("pixels", "", "images/s", "ours / theirs"), lines(found, a.peers[0])))
    asked |= {name: getattr(a, name) for name in ("batch", "images", "workers")}
    asked |= {"pictures": len(paths), "bytes": mean}
    sizes = {size: {peer: found[size, peer] for peer in a.peers} for size in a.sizes}
    harness.write(a.out, {**asked, "sizes": sizes})


if __name__ == "__main__":
    main()
