"""What documents and configs tell a user to type is understood by the command line."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from ssl_jax import main
from ssl_jax.errors import UserError
from ssl_jax.runs import check
from ssl_jax.runs import config as configs

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("[!_]*.*")]
CONFIGS = [f"configs/{name}.py" for name in configs.names() if name != "common"]


def text_of(file):
    """The text of a document or config, lines that a backslash continues as one."""
    text = configs.load_module(file).__doc__ if file in CONFIGS else (ROOT / file).read_text()
    text = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if file.startswith("launch/") else text
    return re.sub(r"\\\n\s*", " ", text).replace("$seed", "0")


def commands(text):
    """The words after `python -m ssl_jax.main`, `ssl-jax` or a launcher, of every command."""
    before = r"(?:python -m ssl_jax\.main|\bssl-jax|launch/[^\n`]+ --|launch/slurm\.sbatch)"
    found = re.findall(before + r" (--config [^\n`|\"]+)", text)
    patterns = ("…", "FILE", "$")  # of a line that is no command as it stands
    whole = [line for line in found if not any(p in line for p in patterns)]
    return [shlex.split(line, comments=True) for line in whole]


def ablations(text):
    """The flags of each line that begins with one, as configs list them."""
    found = re.findall(r"^ +(--config\..+)$", text, re.MULTILINE)
    return [[w for w in line.split() if w.startswith("--config.")] for line in found]


FILES = [*CONFIGS, *(str(f.relative_to(ROOT)) for f in TEXTS)]


@pytest.mark.parametrize("file", [f for f in FILES if commands(text_of(f))])
def test_every_command_is_understood(file):
    for words in commands(text_of(file)):
        config, _, _ = main.parse([w.strip("[]") for w in words], flags, configs)
        if config.job == "pretrain":
            check.pretraining(config)


@pytest.mark.parametrize("file", [f for f in CONFIGS if ablations(text_of(f))])
def test_every_listed_ablation_is_understood(file):
    for words in ablations(text_of(file)):
        refused = []
        for preset in getattr(configs.load_module(file), "PRESETS", None) or [""]:
            name = f"{file}:{preset}" if preset else file
            try:
                config, _, _ = main.parse(["--config", name, *words], flags, configs)
                if config.job == "pretrain":
                    check.pretraining(config)
            except UserError as error:
                refused.append(f"{name}: {error}")
            else:
                break
        else:
            pytest.fail(f"{' '.join(words)}: {refused}")


def test_a_wrong_one_would_be_found():
    text = "see:\n    python -m ssl_jax.main --config simclr:digits --config.bacth=4\n"
    (words,) = commands(text)
    with pytest.raises(UserError, match="bacth"):
        main.parse(words, flags, configs)
    assert ablations("x\n    --config.a=1  --config.b={}   text\n") == [
        ["--config.a=1", "--config.b={}"]
    ]
