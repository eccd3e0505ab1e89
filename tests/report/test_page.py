"""The page: what it says, that nothing breaks out of it, and that a browser is content with it."""

import html
import html.parser
import json
import math
import re
import shutil
import statistics
import subprocess

import numpy as np
import pytest

from ssl_jax.evaluate.health import collapse
from ssl_jax.report import charts, compare, data_uris, glossary, markup, page, sections
from ssl_jax.report.contents import Attention, Neighbours, Pictures, Points, Run, Shown

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--\u2028"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")


def config(seed=0, method="simclr", **more):
    return {
        "seed": seed,
        "batch": 64,
        "workdir": f"runs/{seed}",
        "steps": None,
        "method": {"name": method, "temperature": 0.1},
        "model": {"name": "resnet", "blocks": [1, 2]},
        "data": {"source": "digits"},
        **more,
    }


def records(level=0.0, steps=60):
    found = [
        {
            "step": i,
            "epoch": i / 10,
            "loss": level + 5 / i,
            "learning_rate": 1e-3,
            "embedding_std": 0.9,
            "embedding_rank": 5.0,
            "skipped": 0.0,
            "positive_similarity": 0.5,
        }
        for i in range(1, steps + 1)
    ]
    monitors = {"feature_std_ratio": 0.4, "effective_rank": 30.0, "knn_top1": 0.8 + level / 100}
    return [*found, {"step": steps, **monitors}]


def result(knn=0.9, alarm=None):
    return {
        "steps": 60,
        "knn_top1": knn,
        "linear_top1": None if knn is None else knn + 0.02,
        "baselines": {
            "pixels": {"knn_top1": 0.85, "linear_top1": 0.8},
            "untrained": {"knn_top1": 0.7, "linear_top1": 0.75},
        },
        "judged_on": "test",
        "images_per_second": 1234.5,
        "wall_seconds": 83.0,
        "collapse": {"feature_std_ratio": 0.4, "effective_rank": 30.0, "alarm": alarm},
        "fingerprint": "abc123",
        "made_with": {"jax": "0.10.2", "devices": 1},
    }


def run(name="a", **more):
    fields = {
        "name": name,
        "folder": f"runs/{name}",
        "config": config(),
        "total_steps": 60,
        "steps_per_epoch": 10,
        "records": records(),
        "result": result(),
        "width": 128,
        "command": "python -m ssl_jax.main --config configs/simclr.py:digits",
        "pictures": None,
    }
    return Run(**{**fields, **more})


def drawn(labelled=True, channels=1, side=12, names=("cat", "dog", "owl"), count=50):
    """Pictures of every kind, of noise."""
    r = np.random.default_rng(0)

    def images(*shape):
        return r.integers(0, 256, (*shape, side, side, channels), dtype=np.uint8)

    labels = np.arange(count) % len(names) if labelled else np.full(count, -1)
    near = Neighbours(
        images(4), labels[:4], images(4, 8), np.tile(labels[:8], (4, 1)), r.random((4, 8))
    )
    places = {k: r.uniform(-1, 1, (count, 2)) for k in ("t-SNE", "PCA")}
    return Pictures(
        names=tuple(names) if labelled else (),
        views={"both": images(8, 6)},
        originals=images(8),
        points=Points(places, images(count), labels),
        neighbours=near,
        confusion=np.array([[9, 1, 0], [0, 8, 2], [0, 0, 10]]) if labelled else None,
        spectra={"untrained": 2.0 ** -np.arange(9), "learned": np.ones(9)},
        shown={
            "reconstructions": Shown(
                "Hidden patches.", {"original": images(8), "visible": images(8)}
            ),
            "views": Shown("Tiles.", {"shuffled tiles": images(8, 6)}),
        },
        attention=Attention(images(8), r.random((8, 3, 4, 4))),
        prototypes={"prototypes": np.array([5, 0, 30, 15, 0])},
    )


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, the text of each <script>, and all other text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.words, self.inside = [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data
        else:
            self.words.append(data)


def test_nothing_is_loaded_from_elsewhere():
    parsed = Parsed(page.render([run(pictures=drawn()), run("b", pictures=drawn(False))]))
    links = [v for _, a in parsed.tags for k, v in a.items() if k in ("src", "href", "action")]
    assert len(links) > 100 and all(link.startswith("data:") for link in links)
    assert not {"link", "iframe", "object"} & {t for t, a in parsed.tags if a.get("rel") != "icon"}
    assert "url(" not in page.asset("page.css") and "@import" not in page.asset("page.css")
    policy = [a["content"] for t, a in parsed.tags if "http-equiv" in a]
    assert policy == [page.POLICY] and "default-src 'none'" in page.POLICY


def test_what_a_run_holds_cannot_break_out_of_its_place():
    odd = run(
        HOSTILE,
        folder=HOSTILE,
        config=config(method=HOSTILE, **{HOSTILE: HOSTILE, "data": {"source": HOSTILE}}),
        records=[*records(), {"step": 61, HOSTILE: 1.0, "alarm": HOSTILE}],
        result=result(alarm=HOSTILE) | {"made_with": {HOSTILE: HOSTILE}, "judged_on": HOSTILE},
        command=HOSTILE,
        pictures=drawn(names=(HOSTILE, "b", "c")),
        notes=(HOSTILE,),
    )
    for runs in ([odd], [odd, run("b")], [run("b"), odd]):
        text = page.render(runs)
        parsed = Parsed(text)
        assert [t for t, _ in parsed.tags].count("script") == 2
        assert not any("onerror" in a for _, a in parsed.tags)
        assert all(a["src"].startswith("data:") for t, a in parsed.tags if t == "img")
        data = json.loads(parsed.scripts[0])  # as the browser reads it
        assert HOSTILE in data["planes"][f"run{runs.index(odd)}"]["names"]
        assert HOSTILE in "".join(parsed.words)


def test_the_result_stands_beside_its_baselines():
    text = "".join(Parsed(page.render([run()])).words)
    for shown in ("90.0", "85.0", "70.0", "92.0", "80.0", "75.0", "1 min 23 s", "30.0 of 128"):
        assert shown in text
    assert "60 steps" in text and "6 epochs" in text and "abc123" in text and "0.10.2" in text


@pytest.mark.parametrize(
    "more, kind, words",
    [
        ({}, "fine", "No collapse"),
        ({"result": result(alarm="all the same")}, "alarm", "ALARM: all the same"),
        ({"result": None}, "fine", "No collapse"),
        ({"result": None, "records": []}, "unknown", "Not measured yet"),
        # Of an unfinished run the newest monitors speak: d = 128 raises it below 4 directions.
        (
            {"result": None, "records": [*records(), {"step": 60, "effective_rank": 3.0,
             "feature_std_ratio": 0.4}]},
            "alarm", "ALARM: dimensional collapse",
        ),
        (
            {"result": None, "records": [{"step": 1, "embedding_std": 0.01, "embedding_rank": 3}]},
            "alarm", "ALARM: complete collapse of the embeddings",
        ),
    ],
)  # fmt: skip
def test_the_alarm(more, kind, words):
    found = sections.collapsed(run(**more))
    assert found[0] == kind and found[1].startswith(words)
    text = page.render([run(**more)])
    assert (f'class="state {kind}"' in text) and (words in text)


def test_the_alarms_of_several_runs():
    unmeasured = [run(n, result=None, records=[{"step": 1, "loss": 2.0}]) for n in "uv"]
    said = page.alarms([run("a"), *unmeasured])
    assert "state unknown" in said and "u, v" in said and "state fine" not in said
    both = page.alarms([run("a", result=result(alarm="all alike")), unmeasured[0]])
    assert "a: ALARM: all alike" in both and "state unknown" in both
    assert "state fine" in page.alarms([run("a"), run("b")])


def test_alarms_that_have_passed_are_told():
    early = [{"step": s, "alarm": "too few directions"} for s in (10, 20)]
    text = sections.alarm(run(records=[*early, *records()]))
    assert "No collapse" in text and "2 times on the way, from step 10 to 20" in text


@pytest.mark.parametrize(
    "more",
    [
        {"result": None, "records": [], "width": None, "command": None},
        {"records": [{"step": 1, "loss": 2.0}]},
        {"records": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}]},
        {"result": {"job": "pretrain"}},
        {"result": {**result(None), "baselines": {}}, "pictures": drawn(False)},
    ],
)
def test_a_run_with_little_to_show_has_a_page(more):
    one, several = page.render([run(**more)]), page.render([run(**more), run("b", **more)])
    assert Parsed(one).scripts and Parsed(several).scripts
    if (more.get("result") or {}).get("baselines") == {}:
        assert "No labels" in one


def test_runs_of_other_lengths_or_of_one_seed_are_no_seeds():
    def seeds(*changes):
        runs = [run(str(i), config={**config(0), **c}) for i, c in enumerate(changes)]
        return charts.seeds(runs)

    two = ({"seed": 0}, {"seed": 1})
    assert len(seeds(*two)) == 1
    assert seeds({"seed": 0}, {"seed": 0}) == {} == seeds({"seed": 0}, {"seed": 1, "extend": 2.0})
    (group,) = seeds(*two, {"seed": 1, "extend": 2.0})
    assert group == (0, 1)


def test_embedded_json_is_the_data():
    data = {"a": [HOSTILE, "ü"], "b": 1.5}
    text = markup.embedded(data)
    assert json.loads(text) == data and not set("<>&\u2028") & set(text)
    with pytest.raises(ValueError):
        markup.embedded({"a": math.nan})


def test_charts_of_one_run():
    found = charts.of_runs([run()])
    by_title = {c["title"]: c for drawn in found.values() for c in drawn}
    loss = by_title["Loss"]["series"]
    assert loss[0]["y"][:2] == [5, 2.5] and loss[0]["x"][-1] == 60
    assert loss[0]["faint"] and len(loss) == 2
    # A centred mean of max(3, 60 // 25) values: (5/29 + 5/30 + 5/31) / 3 at step 30.
    assert loss[1]["y"][29] == pytest.approx((5 / 29 + 5 / 30 + 5 / 31) / 3, rel=1e-4)
    accuracy = by_title["Accuracy (%)"]
    assert accuracy["series"] == [
        {"name": "kNN top-1", "color": 0, "faint": False, "x": [60], "y": [80]}
    ]
    assert [(line["name"], line["value"]) for line in accuracy["lines"]] == [
        ("raw pixels, kNN", 85.0),
        ("untrained, kNN", 70.0),
    ]
    alarms = {c["title"]: c["lines"][0]["value"] for c in found["collapse"]}
    assert list(alarms.values()) == [
        collapse.STD_RATIO,
        collapse.rank_threshold(128),
        collapse.EMBEDDING_STD,
        collapse.EMBEDDING_RANK,
    ]
    assert [c["title"] for c in found["method"]] == ["Positive similarity"]
    assert "Skipped" not in by_title and "Epoch" not in by_title


def test_long_curves_are_thinned_and_keep_their_gaps():
    steps = 5_000
    lines = [{"step": i, "loss": math.nan if i == 1_234 else 1.0} for i in range(1, steps + 1)]
    (loss,) = [c for c in charts.of_runs([run(records=lines)])["training"] if c["title"] == "Loss"]
    x, y = loss["series"][0]["x"], loss["series"][0]["y"]
    assert len(x) <= charts.MOST + 1 and (x[0], x[-1]) == (1, steps)
    assert [x[i] for i, v in enumerate(y) if v is None] == [1_234]


def test_curves_of_seeds_have_a_band():
    runs = [run(f"s{i}", config=config(i), records=records(float(i))) for i in range(3)]
    (loss,) = [c for c in charts.of_runs(runs)["training"] if c["title"] == "Loss"]
    assert [s["name"] for s in loss["series"]] == ["s0", "s1", "s2", "3 seeds of simclr, mean ± sd"]
    assert len({s["color"] for s in loss["series"]}) == 1
    assert [bool(s.get("faint")) for s in loss["series"]] == [True, True, True, False]
    band = loss["series"][-1]
    values = [5 / 10 + i for i in range(3)]  # of step 10
    assert band["y"][9] == pytest.approx(statistics.mean(values))
    assert band["high"][9] == pytest.approx(statistics.mean(values) + statistics.stdev(values))
    assert band["low"][9] == pytest.approx(statistics.mean(values) - statistics.stdev(values))


def test_runs_are_grouped_by_all_but_their_seed():
    runs = [run("a"), run("b", config=config(1)), run("c", config=config(2, batch=32))]
    assert charts.seeds(runs) == {(0, 1): "2 seeds of simclr"}
    assert charts.seeds(runs[1:]) == {}
    other = run("d", config=config(3, batch=32, log_every=5))  # which changes nothing
    assert charts.seeds([*runs, other]) == {
        (0, 1): "2 seeds of simclr (a, …)",
        (2, 3): "2 seeds of simclr (c, …)",
    }
    assert charts.colors([run("x", config=config(batch=8)), *runs, other]) == [0, 1, 1, 2, 2]


def test_a_field_that_came_later_has_its_default_before():
    old = run("a", later={"optimizer.delay": 0.0})
    new = {v: run("b", config=config(1, optimizer={"delay": v})) for v in (0.0, 2.0)}
    assert charts.seeds([old, new[0.0]]) == {(0, 1): "2 seeds of simclr"}
    assert charts.seeds([old, new[2.0]]) == {} == charts.seeds([run("a"), new[0.0]])
    assert compare.fields([old, new[0.0]]) == {"seed": [0, 1]}
    assert compare.fields([old, new[2.0]])["optimizer.delay"] == [0.0, 2.0]


def test_no_two_of_24_curves_are_alike_and_each_is_named():
    runs = [run(f"r{i}", config=config(batch=i + 1)) for i in range(24)]
    marks = [markup.mark(c) for c in charts.colors(runs)]
    assert len(set(marks)) == 24 and "dash" not in marks[5] and 'class="dash1"' in marks[6]
    only = run("b", config=config(batch=7), records=[{"step": 1, "momentum": 0.9}])
    text = page.render([run("a"), only])
    chart = text[text.index("<figcaption>Momentum") :]
    assert f"<li>{markup.mark(1)}b</li>" in chart[: chart.index("</figure>")]


def test_shares_are_in_percent_and_the_probe_of_the_monitors_is_called_online():
    lines = [{"step": 1, "contrastive_accuracy": 0.5, "agreement": 0.25, "linear_top1": 0.75}]
    found = charts.of_runs([run(records=lines)])
    assert {c["title"]: c["series"][0]["y"] for c in found["method"]} == {
        "Contrastive accuracy (%)": [50],
        "Agreement (%)": [25],
    }
    (accuracy,) = found["training"]
    assert accuracy["series"][0]["name"] == "Linear top-1, online"
    assert [(line["name"], line["value"], line["color"]) for line in accuracy["lines"]] == [
        ("raw pixels, linear", 80.0, 0),
        ("untrained, linear", 75.0, 0),
    ]
    text = page.render([run(records=lines)])
    assert glossary.ONLINE in html.unescape(text)
    assert glossary.ONLINE not in html.unescape(page.render([run()]))  # without that curve


def test_numbers_keep_what_float32_has():
    assert charts.numbers([0.99987654321, 1000.2345678, 3.0, math.nan]) == [
        0.99987654, 1000.2346, 3, None,
    ]  # fmt: skip


def test_results_side_by_side():
    runs = [run("a"), run("b", result=result(0.95)), run("c", result=None)]
    rows = dict(compare.results(runs))
    assert rows["kNN top-1 (%)"] == [
        compare.Cell("90.0", "", False),
        compare.Cell("95.0", "+5.0", True),
        compare.Cell("–", "", False),
    ]
    assert not any(cell.best for cell in rows["effective rank"])  # neither more nor less is better
    assert "linear top-5 (%)" not in rows  # no run has it
    same = dict(compare.results([run("a"), run("b")]))["kNN top-1 (%)"]
    assert same == [compare.Cell("90.0", "", False)] * 2
    worse = dict(compare.results([run("a"), run("b", result=result(0.85))]))["kNN top-1 (%)"]
    assert worse[1] == compare.Cell("85.0", "−5.0", False)


def test_fields_that_differ():
    other = config(1, batch=32)
    other["method"] = {"name": "simclr", "temperature": 0.5, "queue": 8}
    assert compare.fields([run("a"), run("b", config=other)]) == {
        "seed": [0, 1],
        "batch": [64, 32],
        "method.temperature": [0.1, 0.5],
        "method.queue": [compare.ABSENT, 8],
    }


def test_many_differing_fields_are_folded_away():
    other = config(1)
    other["method"] = {"name": "mae", **{f"field{i}": i for i in range(30)}}
    text = page.render([run("a"), run("b", config=other)])
    shared = text[text.index("2 fields") - 60 : text.index("2 fields")]  # seed, method.name
    apart = text[text.index("31 fields") - 60 : text.index("31 fields")]  # and temperature
    assert "<details" in shared and " open>" in shared
    assert "<details" in apart and " open>" not in apart


def test_over_seeds():
    accuracy = (0.9, 0.93, 0.96)
    runs = [run(f"s{i}", config=config(i), result=result(k)) for i, k in enumerate(accuracy)]
    (column,) = compare.over_seeds(runs).values()
    assert column["kNN top-1 (%)"] == "93.0 ± 3.0"
    row = page.render(runs).split("kNN top-1 (%)</th>")[1].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)", row) == ["93.0 ± 3.0", "90.0", "93.0", "96.0"]
    assert column["speed (images/s)"] == "1,234 ± 0"


def test_a_photograph_becomes_a_jpeg_and_a_drawing_stays_exact():
    import base64
    import io

    from PIL import Image

    r = np.random.default_rng(0)
    noise = r.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    assert data_uris.data_uri(noise).startswith("data:image/jpeg;")
    flat = np.zeros((20, 20, 1), np.uint8)
    flat[5:, 7:] = 200
    kind, _, content = data_uris.data_uri(flat).partition(";base64,")
    assert kind == "data:image/png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(base64.b64decode(content))), flat[..., 0])
    uri, columns = data_uris.sprite(np.stack([flat + i for i in range(5)]))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2]))))
    assert columns == 3 and sheet.shape == (40, 60)
    np.testing.assert_array_equal(sheet[20:, 20:40], flat[..., 0] + 4)  # the fifth: row 2, column 2
    assert not sheet[20:, 40:].any()


def test_a_page_of_photographs_is_below_three_megabytes():
    # Noise is the worst that can come: no photograph is larger.
    noise = drawn(channels=3, side=96, count=1_000)
    assert len(page.render([run(pictures=noise)])) < 3e6


@pytest.mark.parametrize("classes", [3, 60, 201])
def test_confusions_are_a_table_with_names_until_it_is_too_large(classes):
    counts = np.diag(np.full(classes, 5))
    counts[1, 2] = 4
    names = [f"a class named {i}" for i in range(classes)]
    many = drawn(names=names)._replace(confusion=counts)
    text = page.render([run(pictures=many)])
    assert "<b>a class named 1</b> taken for <b>a class named 2</b><span>4</span>" in text
    table = re.search(r'<div class="scroll"><table class="confusion turned">(.*?)</table>', text)
    if classes > 200:
        assert 'class="matrix"' in text and not table
        return
    rows = [re.findall(r"<b>(.*?)</b>|<td[^>]*>(.*?)</td>", r) for r in table[1].split("</tr>")]
    assert [name for name, _ in rows[0] if name] == names
    assert [row[0][0] for row in rows[1:-1]] == names
    cells = [[int(cell or 0) for _, cell in row[1:]] for row in rows[1:-1]]
    np.testing.assert_array_equal(cells, counts)
    assert len(text) < 1e6


def test_examples_carry_the_names_of_their_files():
    pictures = drawn()
    near = pictures.neighbours._replace(
        query_files=tuple(f"q{i}/ask.png" for i in range(4)),
        files=tuple(tuple(f"n{i}/{j}.png" for j in range(8)) for i in range(4)),
    )
    named = pictures._replace(
        points=pictures.points._replace(files=tuple(f"p/{i}.png" for i in range(50))),
        neighbours=near,
        files=tuple(f"o/n01440764_{i}.JPEG" for i in range(8)),
    )
    parsed = Parsed(page.render([run(pictures=named)]))
    assert json.loads(parsed.scripts[0])["planes"]["run0"]["files"][49] == "p/49.png"
    titles = [a["title"] for t, a in parsed.tags if "tile" in a.get("class", "")]
    for file in ("q3/ask.png", "n2/7.png"):
        assert sum(title.endswith(f", {file}") for title in titles) == 1
    views = [title for title in titles if title.endswith("o/n01440764_5.JPEG")]
    said = ["original", *6 * ["view by both"], "original", *6 * ["shuffled tiles"]]
    assert views == [f"{what}, o/n01440764_5.JPEG" for what in said]
    assert "n01440764_5" in parsed.words and markup.short("a/n01440764_10026.JPEG") == "…0764_10026"


def test_examples_that_are_no_images_have_a_page_too():
    pictures = drawn()
    words = pictures._replace(
        points=pictures.points._replace(images=None, files=tuple(f"row {i}" for i in range(50))),
        neighbours=pictures.neighbours._replace(
            queries=None,
            images=None,
            query_files=tuple(f"row {i}" for i in range(4)),
            files=tuple(tuple(f"row {9 * i + j}" for j in range(8)) for i in range(4)),
        ),
        **{"originals": None, "views": {}, "shown": {}, "attention": None},
    )
    text = page.render([run(pictures=words)])
    for shown in ("Nearest neighbours", "Confusions of kNN", "row 34", "50 examples"):
        assert shown in text
    assert "<img" not in text


def test_terms_are_explained_where_they_stand():
    text = html.unescape(page.render([run(pictures=drawn())]))
    for key in ("effective_rank", "feature_std_ratio", "embedding_std", "embedding_rank", "loss",
                "knn_top1", "linear_top1", "positive_similarity"):  # fmt: skip
        assert glossary.OF_METRICS[key] in text, key
    for said in (glossary.SPECTRUM, glossary.EMBEDDING, glossary.COSINE, glossary.BASELINES):
        assert said in text
    measured = charts.of_runs([run(records=[{"step": 1, "alignment": 1.0, "uniformity": -2.0}])])
    assert [c["said"] for c in measured["method"]] == [
        glossary.OF_METRICS[key] for key in ("alignment", "uniformity")
    ]


def test_views_of_the_same_policy_share_a_sheet():
    both = drawn().views["both"]
    pictures = drawn()._replace(views={"a": both, "b": both.copy(), "c": both + 1})
    text = page.render([run(pictures=pictures)])
    assert "<h2>Augmented views: a, b</h2>" in text and "<h2>Augmented views: c</h2>" in text


def linear(color):
    """'#fff' or '#ffffff' -> linear red, green and blue in [0, 1]."""
    digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
    rgb = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(color):
    """CIELAB of a colour under D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    f = np.cbrt(np.array(to_xyz) @ linear(color) / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a, b):
    """Of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def test_the_colours():
    css = page.asset("page.css")
    # A browser that does not know these would lose every colour, curve and bar.
    assert not {"light-dark(", "color-mix("} & set(re.findall(r"[\w-]+\(", css.split("*/", 1)[1]))
    blocks = re.findall(r"[^{}]*\{\s*color-scheme: \w+;[^}]*\}", css)
    assert [re.search(r"color-scheme: (\w+)", b)[1] for b in blocks] == ["light", "dark", "dark"]
    light, by_system, by_choice = (dict(re.findall(r"--([\w-]+): ([^;]+);", b)) for b in blocks)
    assert by_system == by_choice and set(light) == set(by_choice)
    for scheme in (light, by_choice):
        assert min(contrast(scheme["soft"], scheme[k]) for k in ("card", "page")) > 4.5
        classes = [lab(scheme[f"c{i}"]) for i in range(10)]
        away = [np.linalg.norm(a - b) for i, a in enumerate(classes) for b in classes[:i]]
        assert min(away) > 20
    assert not re.search(r"(?<![\w-])(color|fill): var\(--faint\)", css)  # 3.1 : 1, not for text


def chromium(file, *flags):
    """Opens a file; returns (what it prints, what the console says)."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000",
        f"--user-data-dir={file.parent / 'profile'}", *flags, f"file://{file}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


def screenshot(file, *flags):
    """Pixels of the first screens, uint8 [h, w, 3]."""
    from PIL import Image

    shot = file.with_suffix(".png")
    _, console = chromium(file, "--window-size=1280,1600", f"--screenshot={shot}", *flags)
    assert console == []
    return np.asarray(Image.open(shot).convert("RGB"))


# What a reader does, done by a script; what then stands on the page goes into <pre id="seen">.
READER = """
<script>
const seen = {};
const tip = document.getElementById("tip");
const over = (node, x, y) => {
  const box = node.getBoundingClientRect();
  node.dispatchEvent(new PointerEvent("pointermove", {
    clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true,
  }));
};
const all = (selector) => [...document.querySelectorAll(selector)];
addEventListener("load", () => setTimeout(() => {
  seen.charts = all("[data-chart]").map((c) => c.querySelectorAll("path.line, circle").length);
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  const loss = all("figure.chart").find((f) => f.textContent.startsWith("Loss"));
  over(loss.querySelector("svg"), 0.999, 0.5);
  seen.loss = tip.hidden ? "" : tip.textContent;
  const svg = loss.querySelector("svg");
  const event = (node, name, pointerType) => node.dispatchEvent(new PointerEvent(name, {
    clientX: svg.getBoundingClientRect().left + 100, clientY: 100, bubbles: true, pointerType,
  }));
  seen.touch = [];
  const open = () => seen.touch.push(!tip.hidden);
  event(svg, "pointerleave", "mouse"); open();
  event(svg, "pointerdown", "touch"); open();
  event(svg, "pointerleave", "touch"); open();
  event(document.body, "pointerdown", "touch"); open();
  seen.axes = all("[data-chart] svg").map((picture) => {
    const words = (kind) => [...picture.querySelectorAll("text." + kind)].map((t) => t.textContent);
    const inside = [...picture.querySelectorAll("text")].every((t) => {
      const box = t.getBBox();
      return box.x >= 0 && box.x + box.width <= picture.viewBox.baseVal.width;
    });
    return [picture.getAttribute("aria-label"), words("y"), words("x"), inside];
  });
  const smallest = Math.min(...all(".named .tile img").map((i) => i.getBoundingClientRect().width));
  seen.reconstructions = smallest;
  const plane = document.querySelector(".canvas svg");
  const dot = plane.querySelector("circle");
  const first = () => dot.style.transform;
  const before = first();
  document.querySelector('[data-place="PCA"]').click();
  seen.moved = first() !== before;
  document.querySelector('[data-place="t-SNE"]').click();
  seen.back = first() === before;
  const at = dot.getBoundingClientRect();
  plane.dispatchEvent(new PointerEvent("pointermove", {
    clientX: at.left + at.width / 2, clientY: at.top + at.height / 2,
  }));
  seen.thumbnail = getComputedStyle(tip.querySelector(".thumb")).backgroundImage.slice(0, 16);
  seen.label = tip.querySelector("b").textContent;
  document.querySelector('[data-class="1"]').click();
  seen.off = plane.querySelectorAll("circle.off").length;
  const box = document.querySelector(".config input");
  box.value = "TEMPERATURE";
  box.dispatchEvent(new Event("input"));
  seen.fields = all(".config tr").filter((row) => !row.hidden).map((row) => row.textContent);
  const dark = () => getComputedStyle(document.body).backgroundColor;
  const first_color = dark();
  document.getElementById("theme").click();
  seen.theme = dark() !== first_color;
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  document.body.append(pre);
}, 800));
</script></body>"""


@browser
def test_a_reader_can_do_what_the_page_offers(tmp_path):
    file = tmp_path / "index.html"
    odd = [
        {"step": i, "momentum": 0.9999 + i * 1e-7, "tight": 1000.2 + i / 100, "huge": 1e9 * i}
        for i in range(1, 61)
    ]
    text = page.render([run(pictures=drawn(), records=[*records(), *odd])])
    for width in (1280, 390):  # a screen, and a phone
        file.write_text(text.replace("</body>", READER))
        dom, console = chromium(file, "--dump-dom", f"--window-size={width},900")
        assert console == []
        found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
        seen = json.loads(found[1].replace("&amp;", "&"))
        assert min(seen["charts"]) > 0 and len(seen["charts"]) >= 8
        assert seen["wide"], "nothing sticks out sideways"
        assert seen["loss"].startswith("step 60") and "0.08333" in seen["loss"]
        assert seen["touch"] == [False, True, True, False]
        axes = {title: (y, x) for title, y, x, _ in seen["axes"]}
        assert all(len(set(y)) == len(y) >= 3 and inside for _, y, _, inside in seen["axes"])
        assert axes["Momentum of the target"][0] == ["0.999900", "0.999902", "0.999904", "0.999906"]
        assert axes["Tight"][0] == ["1,000.2", "1,000.4", "1,000.6", "1,000.8"]
        assert axes["Huge"][0][:2] == ["0", "2e10"] or axes["Huge"][0][:2] == ["2e10", "4e10"]
        assert axes["Loss"][1][0] == "step 60" and len(axes["Loss"][1]) > 1
        assert seen["reconstructions"] >= 56
        assert seen["moved"] and seen["back"] and seen["theme"]
        assert seen["thumbnail"].startswith('url("data:image') and seen["label"] == "cat"
        assert seen["off"] == sum(i % 3 != 1 for i in range(50))
        assert seen["fields"] == ["method.temperature0.1"]


@browser
def test_a_mistake_in_the_script_would_be_seen(tmp_path):
    file = tmp_path / "index.html"
    broken = page.render([run()]).replace('"use strict";', '"use strict"; nowhere();')
    file.write_text(broken)
    _, console = chromium(file, "--dump-dom")
    assert any("nowhere is not defined" in line for line in console)


@pytest.mark.long
@browser
def test_light_and_dark(tmp_path):
    file = tmp_path / "index.html"
    file.write_text(page.render([run(pictures=drawn()), run("b", config=config(1))]))
    light = screenshot(file, "--blink-settings=preferredColorScheme=1")
    dark = screenshot(file, "--blink-settings=preferredColorScheme=0")
    assert light.shape == dark.shape
    assert np.median(light) > 230 and np.median(dark) < 40
    for picture in (light, dark):  # curves, points and pictures, not an empty page
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 300


@browser
def test_an_alarm_is_red_and_large(tmp_path):
    file = tmp_path / "index.html"
    file.write_text(page.render([run(result=result(alarm="all images are alike"))]))
    shot = screenshot(file, "--blink-settings=preferredColorScheme=1").astype(int)
    red = (shot[..., 0] > 150) & (shot[..., 1] < 80) & (shot[..., 2] < 90)
    file.write_text(page.render([run()]))
    calm = screenshot(file, "--blink-settings=preferredColorScheme=1").astype(int)
    other = (calm[..., 0] > 150) & (calm[..., 1] < 80) & (calm[..., 2] < 90)
    assert red[:400].sum() > 2_000 > 10 * other[:400].sum()
