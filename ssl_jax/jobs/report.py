"""A page about one run or several, from their folders alone."""

import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from ssl_jax.checkpoints import kept
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder
from ssl_jax.processes import host, talk
from ssl_jax.report import collect, page
from ssl_jax.report.contents import Run
from ssl_jax.runs import workdir


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Writes RUN/report/index.html; of several runs, or with a workdir, <workdir>/index.html.

    A run without a checkpoint, or whose images cannot be opened, has a page without pictures, which
    says why.

    Args:
      config: configs/report.py.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: no runs, or a folder that holds none.
    """
    probing.check(config)
    folders = runs_of(config)
    host.set_cpu_devices(config.cpu_devices or host.cpu_devices(config.batch, 1, cluster))
    host.set_compile_cache(config.compile_cache)
    talk.connect(f"begin/{config.job}/{config.runs}/{config.workdir}")
    names = names_of(folders)
    found = [
        look(config, folder, cluster)._replace(name=name)
        for folder, name in zip(folders, names, strict=True)
    ]
    own = kept.locate(folders[0])[0] / "report"
    into = pathlib.Path("runs/report") if len(folders) > 1 else own
    into = pathlib.Path(config.workdir) if config.workdir else into
    file = into / "index.html"
    page.write(file, found)
    if jax.process_index() == 0:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def runs_of(config: ConfigDict) -> list[pathlib.Path]:
    """The folders that `config.runs` names.

    Raises:
      UserError: none, one that is no run or a fine-tuning, or one named twice.
    """
    runs = probing.runs_named(config.runs or "", "runs")
    if not runs:
        raise UserError(
            "which runs? add --config.runs=RUN, the workdir of a run (for example "
            "runs/quickstart), or several: --config.runs=RUN,RUN"
        )
    for run in runs:
        if not (kept.locate(run)[0] / "config.json").is_file():
            raise UserError(f"{run} holds a fine-tuning; a page is of a pretraining run")
    return runs


def names_of(folders: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of each path, as many as set it apart from the others.

    a/simclr/0, a/byol/0, a/byol/1 -> simclr/0, byol/0, 1
    """
    parts = [folder.resolve().parts for folder in folders]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(p[-d:]) for p, d in zip(parts, depth, strict=True)]
        repeated = [
            i for i, p in enumerate(parts) if names.count(names[i]) > 1 and depth[i] < len(p)
        ]
        if not repeated:
            return names
        for i in repeated:
            depth[i] += 1


def look(config: ConfigDict, folder: pathlib.Path, cluster: host.Cluster) -> Run:
    """One run, with pictures where its checkpoint and its images can be read.

    Args:
      folder: its workdir, or the path of one of its checkpoints.
    """
    run, _ = kept.locate(folder)
    try:
        opened = probing.open_run(config, folder, cluster, labels=False)
        step = str(opened.restored.step)  # 'last' may be another by now
        picked = encoder.restore(opened.run, opened.mesh, select=collect.weights, step=step)
        seen = collect.see(opened, config.batch)
    except (UserError, OSError) as error:
        return collect.run_of(run, None, (f"No pictures: {error}",))
    drawn, saved = None, opened.restored.saved
    if jax.process_index() == 0:
        method, _ = encoder.creation(saved)
        if opened.encoder not in (None, next(iter(method.encoders))):
            method = method._replace(prototypes=None)  # they are compared with the first's features
        drawn = collect.draw(saved.config, method, picked.variables, seen)
    result, at = workdir.read_result(run), opened.restored.step
    whole = result is not None and result["steps"] == at
    notes = () if whole else (f"Pictures are of checkpoint {at:,}.",)
    return collect.run_of(run, drawn, notes, width=seen.features.shape[1])
