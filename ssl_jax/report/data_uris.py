"""Arrays as pictures inside a page: data URIs."""

import base64
import io

import numpy as np

SIDE = 80  # pictures are shown at this many pixels at most


def data_uri(image: np.ndarray, most: int = SIDE) -> str:
    """A picture as 'data:image/…;base64,…'.

    PNG, unless a JPEG takes less than half of it: drawings and small pictures stay exact, and
    photographs do not swell the page.

    Args:
      image: uint8 [h, w, C], C is 1 or 3.
      most: longest side, pixels; larger pictures are shrunk.
    """
    picture = _picture(image)
    picture.thumbnail((most, most))
    exact, lossy = (_bytes(picture, kind) for kind in ("png", "jpeg"))
    kind, content = ("jpeg", lossy) if 2 * len(lossy) < len(exact) else ("png", exact)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def sprite(images: np.ndarray, most: int = 32) -> tuple[str, int]:
    """Many small pictures in one, row by row.

    Args:
      images: uint8 [n, h, w, C].
      most: longest side of each, pixels.

    Returns:
      (data URI, pictures in a row).
    """
    small = []
    for image in images:
        picture = _picture(image)
        picture.thumbnail((most, most))
        small.append(np.asarray(picture).reshape(picture.height, picture.width, -1))
    columns = int(np.ceil(np.sqrt(len(small))))
    rows = -(-len(small) // columns)
    blank = [np.zeros_like(small[0])] * (rows * columns - len(small))
    h, w, c = small[0].shape
    grid = np.stack(small + blank).reshape(rows, columns, h, w, c)
    # [rows, columns, h, w, C] -> [rows·h, columns·w, C]
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
    return data_uri(sheet, max(sheet.shape)), columns


def heat(values: np.ndarray) -> np.ndarray:
    """A matrix in colours, its largest value the brightest.

    Args:
      values: float [h, w], ≥ 0.

    Returns:
      uint8 [h, w, 3].
    """
    import matplotlib

    share = np.asarray(values, np.float32) / max(float(np.max(values)), 1e-30)
    return np.round(255 * matplotlib.colormaps["inferno"](share)[..., :3]).astype(np.uint8)


def _picture(image):
    from PIL import Image

    image = np.ascontiguousarray(image)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _bytes(picture, kind):
    out = io.BytesIO()
    picture.save(out, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return out.getvalue()
