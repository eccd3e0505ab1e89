"""What processes say to each other: alone it is nothing, and several get it bit for bit.

Runs of several real processes are in jobs/ and evaluate/features/test_apart.py.
"""

import jax
import numpy as np
import pytest

from ssl_jax.devices import layout
from ssl_jax.processes import talk


def test_a_process_alone_waits_for_nobody_and_has_its_own():
    talk.meet("alone")
    talk.connect("alone")
    assert talk.from_first(7) == 7
    assert talk.any_process(True) is True and talk.any_process(False) is False
    x = np.arange(3, dtype=np.float64) / 3
    np.testing.assert_array_equal(talk.from_each(x, layout.mesh()), x[None])


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64])
def test_what_each_has_travels_as_bits(kind, monkeypatch):
    x = (np.array([[1, -2], [3, 7]]) / (1 if kind == np.int32 else 3)).astype(kind)

    def allgather(sent):  # JAX halves 64 bits
        return np.stack([np.asarray(jax.numpy.asarray(sent))] * 2)

    monkeypatch.setattr(layout, "processes", lambda mesh: 2)
    monkeypatch.setattr(talk.multihost_utils, "process_allgather", allgather)
    found = talk.from_each(x, layout.mesh())
    assert found.dtype == kind
    np.testing.assert_array_equal(found, np.stack([x, x]))


def test_any_process_and_the_first_of_three(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    said = {"process_allgather": lambda x: np.array([0, 0, x]), "broadcast_one_to_all": lambda x: 5}
    for name, answer in said.items():
        monkeypatch.setattr(talk.multihost_utils, name, answer)
    assert talk.any_process(True) is True and talk.any_process(False) is False
    assert talk.from_first(2) == 5
