"""Fields that are younger than a run, filled in, so that its config means what it meant."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs
from ssl_jax.runs.commands import flat

# A config without one of these is damaged, and not old.
ALWAYS = ("data", "method", "model", "views", "evaluate")
# Their fields depend on what they name.
OPEN = ("method", "model", "views")


class Fields(NamedTuple):
    """What a field is where a config does not name it, from the rooms above this one.

    Attributes:
      method: of `config.method`, from the FIELDS of the method.
      optimizer: of `config.optimizer`.
      view: of each of `config.views`.
    """

    method: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    view: Mapping[str, Any]


def complete(config: ConfigDict, fields: Fields) -> ConfigDict:
    """A copy of a config in which no field is absent that its sections have today.

    Fields that it has stay as they are, those within them too: a projector, the groups of an
    optimizer. A field that came after a run gets its default, which is what the run did.

    Args:
      config: of a run, or of a file that is older than a field.
      fields: the defaults of the sections that `runs.config.defaults` leaves open.
    """
    c = config.copy_and_resolve_references()
    with c.unlocked():
        for name, default in configs.defaults().items():
            if name not in c and name not in ALWAYS:
                c[name] = default
            elif isinstance(default, ConfigDict) and name not in OPEN:
                _fill(c.get(name), default)
        _fill(c.get("method"), fields.method)
        _fill(c.get("optimizer"), fields.optimizer)
        for view in c.get("views", {}).values():
            _fill(view, fields.view)
    return c


def added(config: ConfigDict, whole: ConfigDict) -> dict[str, Any]:
    """Dotted names of the fields that `complete` has filled in -> their values."""
    before = flat(config.to_dict())
    return {name: value for name, value in flat(whole.to_dict()).items() if name not in before}


def _fill(section: Any, defaults: Mapping[str, Any]) -> None:
    if not isinstance(section, ConfigDict):  # whoever reads it says so
        return
    for name, value in defaults.items():
        if name not in section:
            section[name] = value
