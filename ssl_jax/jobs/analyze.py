"""Analysis of features without training: alignment, uniformity, spectrum, hardness."""

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.contract.batch import described
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation, run_features
from ssl_jax.evaluate.health import collapse, similarity
from ssl_jax.evaluate.probes import knn, linear
from ssl_jax.processes import host
from ssl_jax.report import pictures, similarity_picture
from ssl_jax.runs import workdir

NUMBERS = ("alignment", "uniformity", "alignment_and_uniformity", "tolerance", "effective_rank")
PROBES = ("knn_top1", "linear_top1")


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Measures the features of two views of every image (evaluate/health/similarity.py).

    Where labels exist, kNN and a linear probe are measured as well, and over three runs or more
    Spearman's rank correlation of each number with them.

    Args:
      config: `probing.defaults('analyze')` with examples, policy, temperatures, alpha, t, seed, k,
        temperature and c.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `probing.begin` and `probing.open_run`; an unknown policy; a temperature that
        is not positive; fewer than two images, or none.
    """
    if config.examples < 2 or min(config.temperatures, default=1) <= 0:
        raise UserError("--config.examples must be at least 2, every --config.temperatures above 0")
    if config.features == "pixels":
        raise UserError("--config.features=pixels: analyze looks at networks; knn takes pixels")
    knn.check_grid((config.k,), (config.temperature,))
    if not config.c > 0:
        raise UserError(f"--config.c is {config.c}; it must be above 0")
    results = probing.each(
        config, cluster, lambda o: measure(o, config), labels=False, compare=correlations
    )
    found = correlations(results)
    if found and jax.process_index() == 0:
        print("\nrank correlation with the probes over the runs (Spearman)")
        print(f"  {'':<26}" + "".join(f"{probe:>18}" for probe in PROBES))
        rho, p = found["rank_correlation"], found["rank_correlation_p"]
        for key in NUMBERS:
            cells = (
                "–"
                if rho[probe][key] is None
                else f"{rho[probe][key]:+.2f} (p {p[probe][key]:.2g})"
                for probe in PROBES
            )
            print(f"  {key:<26}" + "".join(f"{cell:>18}" for cell in cells))
    return 0


def correlations(results: list[dict]) -> dict:
    """How the numbers go with the probes over the runs.

    Args:
      results: of `measure`.

    Returns:
      {'rank_correlation': {probe: {number: Spearman's ρ, None where one of both is constant or
      missing}}, 'rank_correlation_p': its p values, alike}; {} of fewer than three runs, or
      without probes.
    """
    if len(results) < 3 or not all(probe in r for r in results for probe in PROBES):
        return {}
    series = {key: [r.get(key) for r in results] for key in (*NUMBERS, *PROBES)}

    def both(a: str, b: str) -> tuple[float | None, float | None]:
        if None in series[a] or min(len(set(series[a])), len(set(series[b]))) == 1:
            return None, None
        return similarity.rank_correlation(series[a], series[b])

    found = {probe: {key: both(key, probe) for key in NUMBERS} for probe in PROBES}
    return {
        name: {probe: {key: pair[i] for key, pair in row.items()} for probe, row in found.items()}
        for i, name in enumerate(("rank_correlation", "rank_correlation_p"))
    }


def measure(o: probing.Opened, config: ConfigDict) -> dict:
    """All that result.json holds of one run; draws analyze.png beside it."""
    saved = o.restored.saved.config
    part = o.judge or o.learn
    if "image" not in part.source.fields:
        raise UserError(
            f"{part.source.name} has no images ({described(part.source.fields)}); analyze compares "
            "two views of an image"
        )
    rows = part.rows[encoder.subset(len(part.rows), config.examples)]
    if len(rows) < 2:
        raise UserError(f"{part.source.name}: analyze needs two images, there is {len(rows)}")
    pair = similarity.policies(saved, config.policy)
    variables, read = run_features.network(o, config.features)
    encode = similarity.compile_encode(read.embed, pair, config.seed, o.mesh)
    features, labels = encoder.extract(
        encode, variables, part.source, rows, config.batch, o.cluster
    )
    if not np.isfinite(features).all():
        raise UserError(f"{o.run}: the features are not all finite; the encoder diverged")
    x, y = similarity.unit(features[:, 0]), similarity.unit(features[:, 1])
    numbers, histograms = similarity.measure(x, y, labels, config.alpha, config.t)
    numbers["alignment_and_uniformity"] = numbers["alignment"] + numbers["uniformity"]
    whole = encoder.compile_encode(read.features, o.mesh)
    found = []
    for images in (o.learn, o.judge):
        if images is not None:
            found.append(encoder.extract(whole, variables, *images, config.batch, o.cluster))
    spectrum = collapse.measure(found[0][0])
    numbers |= {k: float(spectrum[k]) for k in ("feature_std_ratio", "effective_rank")}
    if len(found) == 2 and representation.labelled(*found):
        scores = knn.classify(*found[0], found[1][0], o.classes, config.k, config.temperature)
        numbers["knn_top1"] = knn.accuracy(scores, found[1][1])["top1"]
        line = linear.probe_at(*found[0], *found[1], o.classes, config.c)
        numbers["linear_top1"] = line["top1"]
    hardness = similarity.hardness(x, y, config.temperatures)
    picture = None
    if jax.process_index() == 0:
        title = f"{saved.method.name} on {o.dataset}, {o.restored.step:,} steps"
        values = np.asarray(spectrum["singular_values"])
        picture = pictures.png(
            lambda file: similarity_picture.draw(file, histograms, values, hardness, title)
        )
    workdir.write_file(o.folder / "analyze.png", picture, pictures.AGAIN)
    return {
        **numbers,
        "features": config.features,
        "views": config.policy or "the run's own",
        "hardness": hardness,
        "histograms": {k: v if v is None else v.tolist() for k, v in histograms._asdict().items()},
        "singular_values": np.asarray(spectrum["singular_values"]).tolist(),
    }
