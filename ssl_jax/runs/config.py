"""Configs: the fields every config has, how a file is loaded, and what is checked before a run.

A config file `configs/<name>.py` holds `PRESETS`, a dictionary from preset to a function without
arguments that returns a ConfigDict, and `get_config(preset)`. The first preset is the default. What
several files share lies in one without `get_config`, and is reached by `load_module(name)`.
"""

import difflib
import importlib.util
import inspect
import json
import pathlib
import traceback
from types import ModuleType

from ml_collections import ConfigDict, config_dict

from ssl_jax.errors import UserError, near_misses

# Fields that may differ when a run is continued: none of them changes the steps of its recipe.
FREE_ON_RESUME = (
    "workdir",
    "extend",
    "extend_schedule",
    "extend_rate",
    "overwrite",
    "log_every",
    "max_bad_steps",
    "compile_cache",
    "cpu_devices",
    "parallel",
    "steps_at_once",
    "model.remat",
    "evaluate.batch",
    "evaluate.train_examples",  # of the last probes; the result says how many there were
    "evaluate.test_examples",
    "monitor",
    "checkpoint",
    "report",
    "data.dir",
    "data.threads",
    "data.ahead",
    "data.max_bad",
    "data.patience",
    "data.cache_bytes",
    "data.resident",
)

# Those of them that its numbers hang on nevertheless: how long it was, on how much it was judged.
COUNTED = (
    *("extend", "extend_schedule", "extend_rate"),
    *("evaluate.train_examples", "evaluate.test_examples"),
)

# Fields that may differ where the same pictures lie at another place, see `Source.identity`.
MOVED = ("data.source", "data.train_split")


def defaults() -> ConfigDict:
    """The fields of a pretraining config, with values that suit any method.

    A config file fills in `method`, `model`, `views` and what differs.
    """
    c = ConfigDict()
    c.job = "pretrain"
    c.seed = 0  # of parameters, data order and augmentation
    c.workdir = config_dict.placeholder(str)  # None: runs/<config>_<preset>
    c.steps = config_dict.placeholder(int)  # optimizer steps; wins over epochs
    c.epochs = config_dict.placeholder(float)  # passes over the data
    # How steps are counted of n examples in batches of B. batches: epochs · (n // B), and of a
    # warm-up likewise; examples: epochs · n // B + 1, and a warm-up without the + 1, as SimCLR's
    # code counts.
    c.epochs_in = "batches"
    c.extend = 0.0  # epochs to go on after the end: of a run that is finished already, too
    c.extend_schedule = "cosine"  # of the learning rate then: cosine | constant
    c.extend_rate = 0.1  # where it begins then, as a share of the peak
    c.overwrite = False  # a run of other values in the workdir gives way (--overwrite)
    c.batch = 256  # examples of one optimizer step, over all devices and micro-batches
    c.accumulate = 1  # micro-batches that a step is computed in
    c.parallel = "shard_map"  # shard_map | pmap | jit: three ways to the same numbers
    c.cpu_devices = config_dict.placeholder(int)  # None: one a core, as the batch allows
    # Steps in one call of the compiled program; more than 1 needs data.resident. None: as before,
    # where a run continues; else with it what divides log_every and the like, at most 10.
    c.steps_at_once = config_dict.placeholder(int)
    c.compile_cache = "auto"  # folder of compiled programs; auto: ~/.cache/ssl_jax; '': none
    # Where a warm-up, a freeze or a delay reaches the end of the run. refuse: stop and say so;
    # tenth: each takes at most a tenth of the run; keep: train with it as it is.
    c.recipe = "refuse"
    c.log_every = 10  # steps
    c.max_bad_steps = 100  # steps in a row whose loss or gradient is not finite: the run stops

    c.data = ConfigDict()
    c.data.source = "digits"  # digits | scenes | synthetic | folder:/path | tfds:name
    c.data.dir = config_dict.placeholder(str)  # TFDS folder; None: TFDS's own default
    c.data.size = 28  # stored side of the square images, pixels
    c.data.channels = 1  # 1 or 3
    c.data.fit = "crop"  # crop: shorter side to size, centre; squash: both sides to size
    c.data.labels = False  # folder: sub-folders are labels (for monitoring only)
    # Of 16-bit pictures: the bits that are used, 12 say, or (low, high), shown as 0 and 255. None:
    # their high byte is taken, which is right where all 16 bits are used.
    c.data.range = config_dict.placeholder(object)
    c.data.max_bad = 0.01  # share of unreadable pictures above which a run stops
    c.data.patience = 600.0  # seconds to wait for data out of reach before saving and stopping
    # Reader threads. None: one a core; above 8 only as many as keep the batches that are read ahead
    # within 4 GiB.
    c.data.threads = config_dict.placeholder(int)
    c.data.ahead = 3  # batches read ahead
    # Names as in the set. "train", "test" and "validation" also find what is called Training, val,
    # dev and the like; another name must be there. folder: "." takes all of it as one training set.
    c.data.train_split = "train"
    c.data.test_split = "test"
    c.data.examples = 10_000  # synthetic, scenes: number of images
    c.data.classes = 10  # synthetic: number of labels
    c.data.cache_bytes = 2**30  # decoded sets up to this size are kept in memory
    # All training images in the memory of every device. None: as before, where a run continues;
    # never on CPU; else if they take at most an eighth of that memory, and at most cache_bytes.
    c.data.resident = config_dict.placeholder(bool)

    c.method = ConfigDict({"name": "simclr"})
    c.model = ConfigDict({"name": "resnet18"})
    c.views = ConfigDict()  # name of a view -> augment.Policy as a dictionary

    c.evaluate = ConfigDict()  # how probes see an image: resize, centre crop, normalise
    c.evaluate.size = 28
    c.evaluate.mean = (0.0,)
    c.evaluate.std = (1.0,)
    c.evaluate.crop_fraction = 1.0  # side of the centre crop as a share of the image
    c.evaluate.split = "test"  # holdout: a fixed fifth of train, to choose hyperparameters on
    c.evaluate.batch = 500
    c.evaluate.train_examples = 50_000  # most examples that final kNN and linear probe learn from
    c.evaluate.test_examples = 50_000

    c.monitor = ConfigDict()
    c.monitor.every_steps = 1_000  # kNN, linear probe and collapse monitors; 0: only at the end
    c.monitor.linear = 0.1  # C of the linear probe on frozen features; 0: none
    c.monitor.train_examples = 10_000  # bank of the kNN monitor
    c.monitor.test_examples = 2_000

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 1_000
    c.checkpoint.keep = 2  # newest; the best is kept besides
    c.checkpoint.best = "max:knn_top1"  # of the monitors, or of a step: min:loss

    c.report = True  # report/: pictures and an HTML page at the end
    return c


def folder() -> pathlib.Path:
    """Where the config files of ssl_jax lie: in the package, or beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())


def names() -> list[str]:
    """The configs of ssl_jax: 'simclr' for configs/simclr.py."""
    return sorted(f.stem for f in folder().glob("[!_]*.py"))


def find(name: str) -> pathlib.Path:
    """The file that a config's name or path means.

    A name alone (`simclr`) is always a config of ssl_jax. A path (it ends in .py) is a file, seen
    from the working folder; where there is none, `configs/simclr.py` is that of ssl_jax as well.

    Raises:
      UserError: there is none.
    """
    path = pathlib.Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    if not name.endswith(".py") and path.name == name and name in names():
        return folder() / f"{name}.py"
    if path.parent == pathlib.Path("configs") and path.suffix == ".py" and path.stem in names():
        return folder() / path.name
    if path.suffix == ".py" or path.name != name:
        kind, known = "file", {f"configs/{n}.py" for n in names()}
    else:
        kind, known = "config", set(names())
    # Own files: those beside the one that is not there.
    own = {str(f) for f in path.parent.glob("*.py")} if path.parent.is_dir() else set()
    known |= set(difflib.get_close_matches(name, own, cutoff=0.6))
    raise UserError(f"--config: there is no {kind} {name}.{near_misses(name, known)}")


def load_module(name: str) -> ModuleType:
    """Imports a config file by its name or path, see `find`.

    Raises:
      UserError: no such file, or it cannot be imported.
    """
    file = find(name)
    spec = importlib.util.spec_from_file_location(f"ssl_jax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config: {name} cannot be imported: {_short(error)}") from error
    return module


def split(argument: str) -> tuple[str, str]:
    """'simclr:digits' -> ('simclr', 'digits'), 'simclr' -> ('simclr', '')."""
    name, colon, preset = argument.rpartition(":")
    if not colon or preset.endswith(".py"):  # no preset, perhaps a colon in a folder's name
        return argument, ""
    return name, preset


def load(argument: str) -> tuple[ConfigDict, str]:
    """Loads a config by its name or path: `simclr`, `simclr:digits`, `my/own.py:preset`.

    Returns:
      (config, name): name is '<file>' or '<file>_<preset>', the default workdir's name.

    Raises:
      UserError: unknown config, file or preset, or a file that makes no config.
    """
    name, preset = split(argument)
    module = load_module(name)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {name} has no function get_config(preset)")
    presets = getattr(module, "PRESETS", None)
    if preset and presets is not None and preset not in presets:
        raise UserError(f"--config: {name} has no preset {preset!r}.{near_misses(preset, presets)}")
    if preset and not inspect.signature(module.get_config).parameters:
        raise UserError(f"--config: {name} has no presets; write --config {name}")
    try:
        config = module.get_config(preset) if preset else module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config: get_config of {name} fails: {_short(error)}") from error
    if not isinstance(config, ConfigDict) or "job" not in config:
        raise UserError(
            f"--config: get_config of {name} returns no config; begin it with "
            "ssl_jax.runs.config.defaults()"
        )
    if config.job == "pretrain" and "remat" not in config.get("model", {"remat": False}):
        config.model.remat = False  # True: less memory, one more forward pass, the same numbers
    if not preset and presets is not None and len(presets) > 1:
        preset = next(iter(presets))
    stem = pathlib.Path(name).stem
    return config, f"{stem}_{preset}" if preset else stem


def _short(error: Exception) -> str:
    """An error of a user's file in one line: its kind, its text, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{pathlib.Path(last.filename).name}, line {last.lineno}"
    if isinstance(error, SyntaxError) and error.filename:  # of the file, and not of its import
        where = f"{pathlib.Path(error.filename).name}, line {error.lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({where})"


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """A config from its JSON text; lists become tuples, as configs hold them."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)))


def differences(a: ConfigDict, b: ConfigDict, free: tuple[str, ...] = FREE_ON_RESUME) -> list[str]:
    """Dotted names of the fields that differ between two configs, those in `free` aside."""

    def flat(value, prefix=""):
        if isinstance(value, dict):
            for k, v in value.items():
                yield from flat(v, f"{prefix}{k}.")
        else:
            yield prefix[:-1], value

    left, right = (dict(flat(json.loads(to_json(c)))) for c in (a, b))
    absent = object()
    names = sorted(n for n in {*left, *right} if left.get(n, absent) != right.get(n, absent))
    below = tuple(f + "." for f in free)
    return [n for n in names if n not in free and not n.startswith(below)]
