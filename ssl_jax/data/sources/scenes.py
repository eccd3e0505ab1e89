"""Drawn scenes with exact masks and depth: cut-out shapes in front of a floor and a wall.

A scene is a pure function of (split, row); its size in pixels only says how finely it is sampled.
A pinhole camera (image coordinates x, y in [−½, ½], y down, focal length one image side) sees a
floor `height` metres below it, whose horizon lies at y₀, and a slanted wall `wall` metres away:

    1 / depth = max((y − y₀) / height, (1 + slant · x) / wall)

Two to five flat shapes face the camera, each at its own depth, so of equal ones the nearer looks
larger; half of them stand on the floor, the others float. The nearest surface wins.

The class is the outline and nothing else: place, depth, size, turn, colours, texture and light are
drawn without looking at it, and all outlines enclose the same area. Objects, floor and wall draw
their colours and textures from the same distributions. So neither the colour nor the depth of a
pixel says which class an object has: what tells them apart is form.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.contract import batch
from ssl_jax.contract.source import Source
from ssl_jax.errors import UserError

SHAPES = ("disc", "square", "triangle", "ring", "star", "cross")  # 1 … 6 in a mask
CLASSES = ("background", *SHAPES)
MOST = 5  # objects of a scene
FLOOR, WALL = MOST, MOST + 1  # their places among the surfaces
REACH = 0.9  # no outline of area 1 reaches further from its centre
PIXELS = 1 << 18  # drawn at a time: what fits a core's cache is quickest
SPLITS = {"train": 0, "test": 1}


class Scene(NamedTuple):
    """What is drawn. k = MOST objects, the farthest first, and k + 2 surfaces: FLOOR and WALL last.

    Attributes:
      horizon, height, wall, slant: float32 [b], see above.
      light: float32 [b, 2], where the light comes from in the image; its length is its strength.
      brightness: float32 [b], factor on all colours.
      shape: int [b, k], place in SHAPES.
      depth: float32 [b, k], metres; inf where a scene has fewer objects.
      x, y: float32 [b, k], centres, image coordinates.
      size: float32 [b, k], square root of the area, metres.
      turn: float32 [b, k], radians.
      colours: float32 [b, k + 2, 2, 3], the two colours of every surface, RGB in [0, 1].
      kind: int [b, k + 2], texture: 0 plain, 1 stripes, 2 checks, 3 dots.
      period: float32 [b, k + 2], of the texture, metres.
      angle, phase: float32 [b, k + 2], of the texture, radians.
    """

    horizon: np.ndarray
    height: np.ndarray
    wall: np.ndarray
    slant: np.ndarray
    light: np.ndarray
    brightness: np.ndarray
    shape: np.ndarray
    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    colours: np.ndarray
    kind: np.ndarray
    period: np.ndarray
    angle: np.ndarray
    phase: np.ndarray


def open_scenes(split: str, data) -> Source:
    """`data.examples` scenes to train, a quarter of that to test, drawn when they are read.

    The label is the class of the nearest object, 0 … 5. `dense_labels` has mask and depth.

    Args:
      split: 'train' or 'test'.
      data: config.data; examples, size and channels are used.

    Raises:
      UserError: no examples.
    """
    if data.examples < 1:
        raise UserError(f"data.examples={data.examples} must be at least 1.")
    n = data.examples if split == "train" else max(1, data.examples // 4)
    size, channels = data.size, data.channels

    def read(rows):
        drawn = draw(split, rows, size, channels)
        return {
            "image": drawn["image"],
            "index": np.asarray(rows).astype(np.int32),
            "label": drawn["label"],
        }

    fields = batch.image(size, channels)
    return Source(f"scenes {split}", n, len(SHAPES), fields, read, lambda: [], SHAPES)


def dense_labels(split: str, rows, size: int) -> dict[str, np.ndarray]:
    """Class and depth of every pixel: of the surface that the ray through its centre meets first.

    Args:
      split: 'train' or 'test'.
      rows: int [b], ≥ 0.
      size: side of the images S, pixels.

    Returns:
      {'mask': int32 [b, S, S], places in CLASSES; 'depth': float32 [b, S, S], metres}.
    """
    drawn = draw(split, rows, size, 1)
    return {"mask": drawn["mask"], "depth": drawn["depth"]}


def draw(split: str, rows, size: int, channels: int) -> dict[str, np.ndarray]:
    """Images, masks, depth and labels of some scenes.

    Args:
      split: 'train' or 'test'.
      rows: int [b], ≥ 0.
      size: side S, pixels.
      channels: 1 (luma) or 3.

    Returns:
      {'image': uint8 [b, S, S, channels], its edges smoothed over a pixel; 'mask' and 'depth' as
      `dense_labels` has them; 'label': int32 [b], the class of the nearest object, 0 … 5}.
    """
    rows = np.asarray(rows, np.int64)
    step = max(1, PIXELS // (size * size))
    parts = [
        _draw(scenes(split, rows[i : i + step]), size, channels)
        for i in range(0, max(len(rows), 1), step)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def scenes(split: str, rows) -> Scene:
    """What is in some scenes. Row i draws from Philox with the key (split, i).

    Args:
      split: 'train' or 'test'.
      rows: int [b], ≥ 0.
    """
    counts = (8, 8 * MOST, 12 * (MOST + 2))
    u = np.empty((len(rows), sum(counts)), np.float32)
    for i, row in enumerate(rows):
        key = np.array([SPLITS[split], row], np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=u[i], dtype=np.float32)
    whole, objects, surfaces = np.split(u, np.cumsum(counts)[:-1], axis=1)
    objects = objects.reshape(-1, MOST, 8)
    surfaces = surfaces.reshape(-1, MOST + 2, 12)

    def between(low, high, share):
        return low + (high - low) * share

    horizon, height = between(-0.4, -0.1, whole[:, 0]), between(0.8, 1.4, whole[:, 1])
    wall, slant = between(5.0, 9.0, whole[:, 2]), between(-0.6, 0.6, whole[:, 3])
    toward, strength = between(0, 2 * np.pi, whole[:, 4]), between(0.2, 0.6, whole[:, 5])
    light = strength[:, None] * np.stack([np.cos(toward), np.sin(toward)], 1)
    number = 2 + (whole[:, 7] * (MOST - 1)).astype(int)  # 2 … MOST

    size = between(0.4, 0.8, objects[..., 0])
    far = 0.75 * wall / 1.3  # before the nearest place of the wall
    depth = 1.2 * (far[:, None] / 1.2) ** objects[..., 1]
    # As low as it can be without touching the floor: y + REACH · size / depth is its foot.
    lowest = horizon[:, None] + (height[:, None] - REACH * size) / depth
    lowest = np.minimum(lowest, 0.42)
    y = between(np.minimum(-0.4, lowest), lowest, np.minimum(2 * objects[..., 2], 1))
    x = between(-0.42, 0.42, objects[..., 3])
    turn = between(-0.6, 0.6, objects[..., 4])
    shape = (objects[..., 5] * len(SHAPES)).astype(int)
    depth = np.where(np.arange(MOST) < number[:, None], depth, np.inf)
    order = np.argsort(-depth, axis=1, kind="stable")

    def sort(values):
        return np.take_along_axis(values, order, 1)

    colours = surfaces[..., :6].reshape(-1, MOST + 2, 2, 3)
    return Scene(
        horizon=horizon,
        height=height,
        wall=wall,
        slant=slant,
        light=light.astype(np.float32),
        brightness=between(0.6, 1.1, whole[:, 6]),
        shape=sort(shape),
        depth=sort(depth),
        x=sort(x),
        y=sort(y),
        size=sort(size),
        turn=sort(turn),
        colours=_rgb(
            colours[..., 0], between(0.1, 0.9, colours[..., 1]), between(0.2, 1.0, colours[..., 2])
        ),
        kind=(surfaces[..., 6] * 4).astype(int),
        period=between(0.2, 0.6, surfaces[..., 7]),
        angle=between(0, np.pi, surfaces[..., 8]),
        phase=between(0, 2 * np.pi, surfaces[..., 9]),
    )


def distance(shape: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far a point lies outside the outline of a shape of area 1; negative inside.

    Outside a corner the distance to the nearer of its two lines is meant.

    Args:
      shape: int [n], places in SHAPES.
      x, y: float32 [n], from the shape's centre, y down.

    Returns:
      float32 [n].
    """
    found = np.empty_like(x)
    for i, of in enumerate(_OUTLINES):
        here = np.flatnonzero(shape == i)
        if len(here):
            found[here] = of(x[here], y[here])
    return found


def _disc(x, y):
    return np.hypot(x, y) - np.sqrt(1 / np.pi)


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.5


def _triangle(x, y):
    inner = np.sqrt(1 / (3 * np.sqrt(3)))  # radius of the circle inside: area 3√3 r²
    return np.maximum(y, np.sqrt(0.75) * np.abs(x) - 0.5 * y) - inner


def _ring(x, y):
    middle = np.sqrt(1 / (1.6 * np.pi))  # its width is 0.8 of the middle radius: area 1.6 π m²
    return np.abs(np.hypot(x, y) - middle) - 0.4 * middle


def _star(x, y):
    outer = np.sqrt(1 / (5 * 0.45 * np.sin(np.pi / 5)))  # area 5 R r sin 36°, r = 0.45 R
    inner = 0.45 * outer
    # Folded into one of ten equal triangles: the tip at angle 0, the notch at 36°.
    turned = np.arctan2(x, -y)
    angle = np.abs((turned + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    notch = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    normal = np.array([notch[1], outer - notch[0]])
    normal = normal / np.hypot(*normal)
    return ((along - outer) * normal[0] + across * normal[1]).astype(x.dtype)


def _cross(x, y):
    arm = np.sqrt(9 / 20)  # half its length; a third of it is half its width: area 20/9 a²
    x, y = np.abs(x), np.abs(y)
    lying = np.maximum(x - arm, y - arm / 3)
    return np.minimum(lying, np.maximum(x - arm / 3, y - arm))


_OUTLINES = (_disc, _square, _triangle, _ring, _star, _cross)


def _draw(s: Scene, size: int, channels: int) -> dict[str, np.ndarray]:
    """`draw` for scenes that fit the memory at once."""
    b = len(s.depth)
    side = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y = np.broadcast_arrays(side[None, None, :], side[None, :, None])  # [1, S, S] each

    def column(values):
        return values[:, None, None]

    # [b, S, S], 1 / metres
    floor = (y - column(s.horizon)) / column(s.height)
    wall = (1 + column(s.slant) * x) / column(s.wall)
    on_floor = floor > wall
    inverse = np.maximum(floor, wall)
    depth = 1 / inverse
    # On the floor (right, away), on the wall (right, down), metres.
    across, along = x * depth, np.where(on_floor, depth, y * depth)
    # A period of a metre, in pixels: foreshortened on the floor, where it lies along the view.
    pixels = size * inverse * np.where(on_floor, inverse * column(s.height), 1)
    scene = np.broadcast_to(np.arange(b)[:, None, None], depth.shape)
    colour = _paint(s, scene, np.where(on_floor, FLOOR, WALL), across, along, pixels)
    lit = column(s.light[:, 0]) * x + column(s.light[:, 1]) * np.where(on_floor, -0.5, 0.5)
    image = colour * (1 + lit)[..., None]
    mask = np.zeros(depth.shape, np.int32)

    for k in range(MOST):  # the farthest first, each over those before it
        reach = np.where(np.isfinite(s.depth[:, k]), REACH * s.size[:, k] / s.depth[:, k], -1)
        reach = reach + 1 / size  # smoothed edges
        rows = np.abs(side - s.y[:, k, None]) < reach[:, None]  # [b, S]
        columns = np.abs(side - s.x[:, k, None]) < reach[:, None]
        there = np.isfinite(s.depth[:, k])[:, None, None] & rows[:, :, None] & columns[:, None, :]
        i, row, column_of = np.nonzero(there)  # [n] each
        z = s.depth[i, k]
        i, row, column_of, z = (v[z < depth[i, row, column_of]] for v in (i, row, column_of, z))
        metres = size / z  # pixels of a metre
        right, down = (side[column_of] - s.x[i, k]) * z, (side[row] - s.y[i, k]) * z
        cos, sin = np.cos(s.turn[i, k]), np.sin(s.turn[i, k])
        across, along = cos * right + sin * down, cos * down - sin * right  # metres
        extent = s.size[i, k]
        outside = distance(s.shape[i, k], across / extent, along / extent) * extent  # metres
        cover = np.clip(0.5 - outside * metres, 0, 1)[:, None]
        colour = _paint(s, i, np.full(i.shape, k), across, along, metres)
        # Shaded as if it bulged: brighter towards the light.
        lit = (s.light[i, 0] * right + s.light[i, 1] * down) / extent
        colour = colour * np.clip(1 + 1.5 * lit, 0.2, None)[:, None]
        image[i, row, column_of] += cover * (colour - image[i, row, column_of])
        inside = outside < 0
        place = i[inside], row[inside], column_of[inside]
        mask[place] = s.shape[i, k][inside] + 1
        depth[place] = z[inside]

    image = np.clip(image * column(s.brightness)[..., None], 0, 1)
    if channels == 1:
        image = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return {
        "image": np.round(255 * image).astype(np.uint8),
        "mask": mask,
        "depth": depth.astype(np.float32),
        "label": s.shape[:, -1].astype(np.int32),
    }


def _paint(s, scene, surface, across, along, metre):
    """Colour of points on surfaces: [...] each -> [..., 3]. `metre`: pixels of a metre there."""
    angle, period = s.angle[scene, surface], s.period[scene, surface]
    kind = s.kind[scene, surface]
    wave, phase = 2 * np.pi / period, s.phase[scene, surface]
    cos, sin = np.cos(angle), np.sin(angle)
    u = wave * (cos * across + sin * along) + phase
    v = wave * (cos * along - sin * across)
    u, v = np.sin(u), np.sin(v)
    pattern = np.select([kind == 1, kind == 2, kind == 3], [u, 1.5 * u * v, u + v - 0.7], -1.0)
    # Finer than the pixels can show, it fades into the mean.
    fine = np.clip((period * metre - 2) / 3, 0, 1)
    share = 0.5 + 0.5 * np.where(kind == 0, -1, fine * np.tanh(4 * pattern))
    colours = s.colours[scene, surface]  # [..., 2, 3]
    one, other = colours[..., 0, :], colours[..., 1, :]
    return one + share[..., None].astype(np.float32) * (other - one)


def _rgb(hue, saturation, value):
    """float32 [...] in [0, 1] each -> RGB float32 [..., 3]."""
    k = (np.array([5, 3, 1], np.float32) + 6 * hue[..., None]) % 6
    chroma = (value * saturation)[..., None]
    return (value[..., None] - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)
