"""Own pictures: 300 in every format, five of them broken; the five are named, the run goes on."""

import json

import numpy as np
import pytest
from kit import tiny_run
from PIL import Image


def picture(rng, i):
    """A PIL image of one of eight kinds."""
    height, width = rng.integers(20, 60, 2)
    colour = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(colour)
    match i % 8:
        case 0:
            return image, "jpg"
        case 1:
            return image, "png"
        case 2:
            return image, "webp"
        case 3:
            return image.convert("L"), "bmp"
        case 4:
            return image.convert("P"), "png"
        case 5:
            return image.convert("RGBA"), "png"
        case 6:
            return image.convert("CMYK"), "jpeg"
        case _:
            deep = rng.integers(0, 2**16, (height, width), dtype=np.uint16)
            return Image.fromarray(deep), "png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(295):
        image, suffix = picture(rng, i)
        into = folder / f"depth{i % 3}" / ("more" if i % 2 else ".")
        into.mkdir(parents=True, exist_ok=True)
        image.save(into / f"{i:03d}.{suffix}")
    jpeg = next((folder / "depth0").rglob("*.jpg")).read_bytes()
    broken = {
        "cut.jpg": jpeg[: len(jpeg) // 3],
        "empty.png": b"",
        "text.png": b"this is no picture",
        "header.webp": b"RIFF" + bytes(100),
        "zeros.bmp": bytes(500),
    }
    for name, content in broken.items():
        (folder / "depth1" / name).write_bytes(content)
    return folder, sorted(broken)


def test_a_folder_with_five_broken_pictures_pretrains_and_names_them(pictures, tmp_path):
    folder, broken = pictures
    more = (f"--config.data.source=folder:{folder}", "--config.data.channels=3")
    process = tiny_run.start(
        tmp_path, *more, "--config.steps=20", "--config.log_every=5", "--config.report=True"
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    for name in broken:
        assert sum(f"depth1/{name}" in line for line in out.splitlines()) == 1, out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 20 and result["unreadable_pictures"] == 5
    assert result["knn_top1"] is None and result["collapse"]["effective_rank"] > 1
    assert (tmp_path / "report" / "summary.png").is_file()
    assert "no labels" in out


def test_one_more_broken_picture_stops_the_run_in_one_line(pictures, tmp_path, capsys):
    folder, _ = pictures
    (folder / "depth1" / "sixth.png").write_bytes(b"nor is this")
    more = (f"--config.data.source=folder:{folder}", "--config.data.channels=3")
    assert tiny_run.run(tmp_path, *more, "--config.steps=20") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "--config.data.max_bad" in last


def test_a_stopped_run_goes_on_where_its_pictures_lie_now(tmp_path, monkeypatch, capsys):
    """And from another folder than it began in; with other pictures it does not."""
    rng = np.random.default_rng(0)
    for name in (f"{c}/{i}.png" for c in "ab" for i in range(40)):
        (tmp_path / "in, here" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (28, 28), np.uint8))
        picture.save(tmp_path / "in, here" / name)
    work = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    few = ("--config.steps=4", "--config.data.labels=True")
    assert tiny_run.run(work, *few, "--config.data.source=folder:in, here") == 0
    config = json.loads((work / "config.json").read_text())
    assert config["config"]["data"]["source"] == f"folder:{tmp_path}/in, here"
    first = json.loads((work / "result.json").read_text())

    (work / "result.json").unlink()  # as if it had been stopped before its probes
    (tmp_path / "in, here").rename(tmp_path / "there")
    monkeypatch.chdir("/")
    moved = f"--config.data.source=folder:{tmp_path}/there"
    (tmp_path / "there/a/0.png").rename(tmp_path / "there/a/00.png")
    assert tiny_run.run(work, *few, moved) == 2
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "there/a/00.png").rename(tmp_path / "there/a/0.png")
    assert tiny_run.run(work, *few, moved) == 0
    again = json.loads((work / "result.json").read_text())
    for field in ("fingerprint", "knn_top1", "linear_top1", "baselines"):
        assert again[field] == first[field]
    assert json.loads((work / "config.json").read_text())["config"]["data"]["source"] in moved
    # A finished run is what it is.
    assert tiny_run.run(work, *few, f"--config.data.source=folder:{tmp_path}") == 2
    assert "differs in data.source" in capsys.readouterr().err
    assert tiny_run.probe("knn", work, "--config.k=5") == 0  # its pictures are found from here
