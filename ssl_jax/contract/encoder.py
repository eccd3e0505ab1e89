"""What of a run can be probed: an encoder that a method names."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Encoder(NamedTuple):
    """One way from examples to features, as pure functions.

    A probe reads `variables` from a checkpoint, and nothing else of it. The fixed view of an
    example (resize, centre crop, normalisation) is the encoder's own business.

    Attributes:
      variables: (params, state) -> variables: the leaves of a training state that it needs.
      features: (variables, batch) -> float32 [b, d].
      maps: (variables, batch) -> [b, h, w, d], or None: for dense probes.
      tokens: (variables, batch) -> [b, T, d], or None.
      embed: of an encoder of images, (variables, views float [b, h, w, C]) -> [b, d]: the features
        of views that are drawn already. Else None.
      view: of an encoder of images, the fixed view that `features` gives to `embed`
        (`augment.Fixed`). Else None.
      network: of an encoder that is one Flax module on views, that module: what fine-tuning trains,
        and what probes read inner layers of. Else None.
    """

    variables: Callable[[Any, Any], Any]
    features: Callable[[Any, Any], Any]
    maps: Callable[[Any, Any], Any] | None = None
    tokens: Callable[[Any, Any], Any] | None = None
    embed: Callable[[Any, Any], Any] | None = None
    view: Any = None
    network: Any = None
