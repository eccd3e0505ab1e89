"""Flags → config → job. Nothing else.

python -m ssl_jax.main --config simclr:imagenet --workdir W --config.batch=1024
"""

import functools
import importlib
import logging
import os
import sys
import textwrap

from ssl_jax.processes import malloc

if __name__ == "__main__":  # before anything large is imported: it begins again from here
    malloc.start_in_huge_pages()

from ssl_jax.errors import UserError, near_misses  # noqa: E402
from ssl_jax.processes import find, host, join  # noqa: E402

JOBS = {
    "pretrain": "learn a representation from images without labels",
    "linear": "train a linear classifier on a checkpoint's features",
    "knn": "classify with the nearest neighbours of a checkpoint's features",
    "lowshot": "the same with 1 % and 10 % of the labels, and with 1, 5, 10 a class",
    "finetune": "train a checkpoint's whole network with labels",
    "transfer": "probe one encoder on several data sets, one table",
    "dense": "segment scenes and tell their depth with a linear layer on feature maps",
    "retrieve": "find the nearest images; recall@k and a picture",
    "cluster": "group images by k-means on a checkpoint's features",
    "analyze": "alignment, uniformity, spectrum and hardness of a checkpoint's features",
    "report": "write one HTML page about a run, or about several side by side",
}

FLAGS = """\
usage: {program} --config CONFIG[:PRESET] [--workdir FOLDER] [--config.FIELD=VALUE …]

  --config CONFIG[:PRESET] what to run, see below; without a preset, the first of its presets
  --help [CONFIG]          this text; with a config its presets and the fields of its method
  --config.FIELD=VALUE     changes a field of it: --config.batch=64 --config.optimizer.name=adamw
  --workdir FOLDER         where the run lives (default runs/CONFIG_PRESET, in the folder that you
                           are in); the same command again continues the run there
  --overwrite              a run of other values in that folder is deleted
  --coordinator HOST:PORT  several processes: the address of process 0 (with the next two)
  --processes P            how many processes there are
  --process I              which of them this is, 0 … P−1

CONFIG is a name from the list at the end, or the path of a file of your own, which ends in .py:
--config simclr:digits, --config my/own.py:small. A name always means the config of ssl_jax. A path
means your own file; where you have none there, configs/NAME.py means the config of ssl_jax as well.

Under SLURM (srun), Open MPI (mpirun), Kubernetes and on a TPU pod the processes find each other
without the last three flags; launch/ in the repository has scripts that start and restart them.

exit codes: 0 done; 2 a mistake that the message names; 75 the other processes did not come;
143 asked to stop (SIGTERM, Ctrl-C) and saved: the same command continues"""

HELP = {"--help", "-h", "-help", "--helpfull"}
INDENTED = {"initial_indent": "  ", "subsequent_indent": "  "}
HANGING = {"initial_indent": "  ", "subsequent_indent": " " * 22}
NESTED = {"initial_indent": " " * 19, "subsequent_indent": " " * 28}

EXAMPLES = """\
examples:
  {program} --config quickstart
  {program} --config linear --config.checkpoint=runs/quickstart
  {program} --config simclr:imagenet --config.data.source=folder:/pictures"""


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code.

    0 done; 2 a mistake that the user can mend; 143 asked to stop while training, and saved: the
    same command continues; 130 interrupted elsewhere. (75, from `join.join`: the other processes
    did not come.)
    """
    host.keep_memory_pages()
    try:
        if not argv or HELP & set(argv):
            print(help_text(helped(argv)))
            return 0
        return run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written, a lost mount
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(argv: list[str]) -> int:
    """Reads the flags, joins the other processes, hands over to the job.

    Raises:
      UserError: flags, config or anything the job finds wrong.
    """
    from absl import flags
    from absl import logging as absl_logging

    from ssl_jax.runs import config as configs

    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and TFDS talk a lot
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    config, name, values = parse(argv, flags, configs)
    if config.job not in JOBS:
        raise UserError(f"config.job is {config.job!r}.{near_misses(config.job, JOBS)}")
    given = find.Flags(values.coordinator, values.processes, values.process)
    processes = join.join(find.find(given, os.environ, find.on_tpu_vm()))
    job = importlib.import_module(f"ssl_jax.jobs.{config.job}")
    return job.run(config, processes, name)


def parse(argv: list[str], flags, configs):
    """Command line -> (config with every override applied, its name, flags).

    Raises:
      UserError: an unknown flag, field, file or preset, or a value of the wrong type.
    """
    from ml_collections import config_flags

    argument, rest = take_config(argv)
    config, name = configs.load(argument)
    rest = take_policies(config, rest)
    open_groups(config, rest)
    config.lock()
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process", None, "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        left = values(["main", *rest])
    except AttributeError as error:  # an unknown field: the message names the nearest one
        text = str(error).replace("\\n", " ").replace("\\", "").replace("\n", " ").strip("\"' ")
        text = text.replace("' Did", ". Did")
        raise UserError(f"{argument} has no field {text}") from None
    except KeyError as error:  # a field of a section that there is not
        section = str(error.args[0]).strip("'\"")
        given = [w.partition("=")[0] for w in rest if f".{section}." in w.partition("=")[0]]
        missing = given[0].partition(f".{section}.")[0] if given else "--config"
        raise UserError(f"{argument} has no {missing}.{section}") from None
    except (flags.Error, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        whole = sections(config).intersection(w.lstrip("-").partition("=")[0] for w in rest)
        if whole and "as a ConfigDict" in text:
            name = min(whole)
            inner = functools.reduce(lambda c, part: c[part], name.split(".")[1:], config)
            first = sorted(inner, key=lambda field: field not in ("name", "source"))
            raise UserError(
                f"--{name} has fields of its own, which are set one by one: "
                + ", ".join(f"--{name}.{field}=…" for field in first[:3])
            ) from None
        wrong = [w.lstrip("-").partition("=")[0] for w in rest if not w.startswith("--config.")]
        field = next((w for w in wrong if w in config and w not in values), None)
        hint = f"did you mean --config.{field}=VALUE?" if field else "--help shows the flags"
        raise UserError(f"{text} ({hint})") from None
    if len(left) > 1:
        raise UserError(f"{left[1]!r} is not a flag; fields are set as --config.FIELD=VALUE")
    config = values.config
    if values.workdir is not None:
        config.workdir = values.workdir
    if values.overwrite:
        if "overwrite" not in config:
            raise UserError(f"--overwrite is for pretraining; {config.job} overwrites its result")
        config.overwrite = True
    return config, name, values


def sections(config, prefix: str = "config") -> set[str]:
    """The dotted names of everything in a config that has fields of its own."""
    inner = {f"{prefix}.{k}": v for k, v in config.items() if isinstance(v, type(config))}
    return set(inner).union(*(sections(value, name) for name, value in inner.items()))


def take_policies(config, argv: list[str]) -> list[str]:
    """Takes `--config.views.NAME=POLICY` off the command line: an augmentation by its name.

    It keeps the size and the normalisation that the config gives that view.

    Raises:
      UserError: no such policy.
    """
    from ssl_jax.augment import policies

    rest, words = [], iter(argv)
    for word in words:
        field, equals, value = word.partition("=")
        parts = field.removeprefix("--").split(".")
        views = config.get("views", {})
        named = parts[:-1] == ["config", "views"] and parts[-1] in views
        if named and not equals:
            value = next(words, "")
        if not named:
            rest.append(word)
            continue
        old = views[parts[-1]]
        try:
            made = policies.make(value, old.size, mean=old.mean, std=old.std)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None
        old.update(made._asdict())
    return rest


def open_groups(config, argv: list[str]) -> None:
    """Gives a parameter group the field that `--config.optimizer.groups.LABEL.FIELD=VALUE` sets.

    A group has only what differs from `config.optimizer`, and a flag sets only fields that there
    are: so it gets the optimizer's own value first. Whether the method has such a group is asked
    later, where its parameters are known.

    Raises:
      UserError: a field that no optimizer has.
    """
    prefix = "config.optimizer.groups."
    words = [w.lstrip("-").partition("=")[0] for w in argv]
    named = [w.removeprefix(prefix).split(".") for w in words if w.startswith(prefix)]
    if not named or "groups" not in config.get("optimizer", {}):
        return
    from ml_collections.config_dict import placeholder

    from ssl_jax.optim import optimizers

    for label, field in (n for n in named if len(n) == 2):
        if field not in optimizers.FIELDS:
            hint = near_misses(field, optimizers.FIELDS)
            raise UserError(f"--{prefix}{label} has no field {field}.{hint}")
        groups = config.optimizer.groups
        if label not in groups:
            groups[label] = type(config)()
        if field not in groups[label]:
            value = config.optimizer.get(field, optimizers.FIELDS[field])
            groups[label][field] = placeholder(float) if value is None else value


def take_config(argv: list[str]) -> tuple[str, list[str]]:
    """Splits `--config X` or `--config=X` off the command line.

    Raises:
      UserError: it is missing or given twice.
    """
    found, rest, words = [], [], iter(argv)
    for word in words:
        if word in ("--config", "-config"):
            value = next(words, None)
            if not value or value.startswith("-"):
                raise UserError("--config needs a name or a file: --config quickstart")
            found.append(value)
        elif word.startswith(("--config=", "-config=")):
            found.append(word.partition("=")[2])
        else:
            rest.append(word)
    if not found:
        from ssl_jax.runs import config as configs

        known = configs.names()
        guess = (w for w in rest if w.partition(":")[0].endswith(".py") or w.split(":")[0] in known)
        guess = next(guess, None)
        hint = f"write --config {guess}" if guess else "start with --config quickstart"
        raise UserError(f"which config? {hint} (--help lists them)")
    if len(found) > 1:
        raise UserError(f"--config is given {len(found)} times; give it once")
    return found[0], rest


def helped(argv: list[str]) -> str | None:
    """The config that help is asked about: the word after --help, or that of --config; or None."""
    for before, word in zip(argv, [*argv[1:], ""], strict=False):
        if before in {*HELP, "--config", "-config"} and word and not word.startswith("-"):
            return word
        if before.startswith(("--config=", "-config=")):
            return before.partition("=")[2]
    return None


def help_text(config: str | None = None) -> str:
    """Flags, jobs, methods, configs with their presets, examples; or all about one config.

    Raises:
      UserError: there is no config of that name.
    """
    if config is not None:
        return help_of(config)
    from ssl_jax.methods import METHODS
    from ssl_jax.runs import commands
    from ssl_jax.runs import config as configs

    program = commands.program()
    lines = [FLAGS.format(program=program), "", EXAMPLES.format(program=program), "", "jobs:"]
    lines += [f"  {name:<11}{text}" for name, text in JOBS.items()]
    lines += ["", "methods:", textwrap.fill(" ".join(sorted(METHODS)), 98, **INDENTED)]
    lines += ["", f"configs, in {configs.folder()}:"]
    for name in configs.names():
        module = configs.load_module(name)
        if not hasattr(module, "get_config"):  # what several share
            continue
        title = (module.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<17}{title}")
        if presets := ", ".join(getattr(module, "PRESETS", {})):
            lines.append(textwrap.fill(f"presets: {presets}", 98, **NESTED))
    return "\n".join(lines)


def help_of(argument: str) -> str:
    """What a config file says of itself, its presets, and the fields of their method.

    Args:
      argument: its name or path, with or without a preset, as `--config` takes it.

    Raises:
      UserError: there is no such file, or it makes no config.
    """
    from ssl_jax import methods
    from ssl_jax.runs import config as configs

    config, _ = configs.load(argument)
    module = configs.load_module(configs.split(argument)[0])
    lines = [(module.__doc__ or "").strip()]
    if presets := getattr(module, "PRESETS", {}):
        lines += ["", "presets:"]
        for name, preset in presets.items():
            title = (preset.__doc__ or "").strip().split("\n\n")[0]
            lines.append(textwrap.fill(f"{name:<20}{' '.join(title.split())}", 98, **HANGING))
    name = config.method.name if "method" in config else None
    if name in methods.METHODS and methods.FIELDS[name]:
        lines += ["", f"fields of {name}, with their defaults (a preset may have others):"]
        for field in methods.FIELDS[name]:
            lines += field_help(field)
    return "\n".join(lines)


def field_help(field) -> list[str]:
    """`--config.method.NAME` with its default and its meaning; those of a head below it."""
    inner = field.default if isinstance(field.default, dict) else {}
    default = "" if inner else repr(field.default)
    lines = [f"  --config.method.{field.name:<24}{default:<14}{field.meaning}"]
    lines += [f"  --config.method.{field.name + '.' + k:<24}{v!r}" for k, v in inner.items()]
    return lines


if __name__ == "__main__":
    join.leave(main, sys.argv[1:])
