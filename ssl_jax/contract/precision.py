"""Float32 at least: in what precision sums are taken, and what learns or remembers is kept.

A model may compute in bfloat16; its parameters, statistics, losses and queues are float32 then. In
float64 (`model.dtype`, where JAX has its 64-bit types) they are float64, so that two programs for
the same mathematics agree to many digits, whatever a processor makes of rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp


def wide_dtype(dtype: Any) -> jnp.dtype:
    """`dtype` if it is float64, else float32."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """x as float32, or as it is where it is float64."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))
