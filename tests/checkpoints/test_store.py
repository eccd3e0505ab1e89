"""Checkpoints: the whole state back to the last bit, the encoder alone, and clear refusals."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.small_state import create, encoder, like, whole

from ssl_jax.checkpoints import kept, manifest, reading, store, tree, verify
from ssl_jax.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    state = jax.jit(create, out_shardings=whole())()
    with store.open_manager(folder, 2) as manager:
        store.save(manager, state, {"knn_top1": 0.5})
    return folder, state


def test_the_whole_state_comes_back_on_every_device(saved):
    folder, state = saved
    with store.open_manager(folder, 2) as manager:
        assert manager.latest_step() == 7
        back = reading.restore(manager, 7, like())
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert tree.fingerprint(back) == tree.fingerprint(state)
    assert back.params["encoder"]["w"].sharding == whole()


def test_the_encoder_alone_comes_back_whatever_the_optimizer(saved):
    folder, state = saved
    other = like()._replace(opt_state=())  # probing knows nothing of the optimizer
    with store.open_manager(folder, 1, read_only=True) as manager:
        variables = reading.restore_part(manager, 7, other, encoder)
    assert set(variables) == {"params", "batch_stats"}
    np.testing.assert_array_equal(variables["params"]["w"], state.params["encoder"]["w"])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], jnp.arange(3.0))


def test_another_model_is_refused_in_one_line(saved):
    folder, _ = saved
    with store.open_manager(folder, 1, read_only=True) as manager:
        with pytest.raises(UserError, match=r"params/encoder/w is \(4, 3\), the config's \(5, 3\)"):
            reading.restore_part(manager, 7, like(width=5), encoder)
        with pytest.raises(UserError, match="it has no params/encoder/v"):
            reading.restore_part(manager, 7, like(name="v"), encoder)
        for wrong, why in (
            (like(width=5), r"opt_state/1/momentum is \(4, 3\), the config's \(5, 3\)"),
            (like(name="v"), "it has no params/encoder/v"),
            (like()._replace(opt_state=()), "it has opt_state/1/momentum, which the config's"),
            (like()._replace(key=like().streak), r"its key is \(2,\), the config's \(\)"),
        ):
            with pytest.raises(UserError, match=f"not hold this model's state .*{why}") as error:
                reading.restore(manager, 7, wrong)
            assert "\n" not in str(error.value)


def test_the_newest_two_and_the_best_stay(tmp_path):
    accuracies = {1: 0.2, 2: 0.9, 3: 0.3, 4: None, 5: 0.4}
    with store.open_manager(tmp_path, 2) as manager:
        for step, accuracy in accuracies.items():
            store.save(manager, create(step=step), {"knn_top1": accuracy})
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [2, 4, 5]
        before = (tmp_path / "5").stat().st_mtime_ns
        store.save(manager, create(step=5), {"knn_top1": 0.9})  # saved already: nothing happens
        manager.wait_until_finished()
        assert (tmp_path / "5").stat().st_mtime_ns == before
        assert kept.listed(tmp_path)[-1].metrics["knn_top1"] == 0.4


def test_a_fingerprint_is_of_names_dtypes_shapes_and_bytes():
    state = create()
    mark = tree.fingerprint(state)
    assert mark == tree.fingerprint(jax.device_put(state, whole())) and len(mark) == 64
    others = [
        create(name="v"),
        create(step=8),
        state._replace(key=jax.random.key(4)),
        state._replace(opt_state=((), {"momentum": state.opt_state[1]["momentum"].T})),
        state._replace(skipped=state.skipped.astype(jnp.uint32)),
    ]
    assert len({mark, *map(tree.fingerprint, others)}) == 6


def test_an_old_step_leaves_at_once_and_whole(tmp_path, monkeypatch):
    """Killed between two of its files, it would look like a damaged checkpoint ever after."""
    folder = tmp_path / "checkpoints"
    made = jax.jit(create, out_shardings=whole())()

    def step(number):
        return made._replace(step=jax.device_put(np.int32(number), whole()))

    with monkeypatch.context() as patched:  # whoever deletes is killed before the first file
        patched.setattr(store.shutil, "rmtree", lambda *_, **__: None)
        with store.open_manager(folder, 1) as manager:
            for number in (1, 2, 3):
                store.save(manager, step(number))
    assert verify.steps(folder) == [3]
    for number in (1, 2):
        assert verify.damage(folder / store.DELETED / str(number)) is None
    (folder / store.DELETED / "2" / manifest.NAME).unlink()
    with store.open_manager(folder, 1) as manager:
        assert not (folder / store.DELETED).exists() and manager.latest_step() == 3
        store.save(manager, step(4))
        manager.wait_until_finished()
    assert sorted(f.name for f in folder.iterdir()) == ["4"]


def test_a_file_system_that_fails_for_a_moment_costs_one_checkpoint(tmp_path, monkeypatch, capsys):
    def stale(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with store.open_manager(tmp_path, 2) as manager:
        with monkeypatch.context() as during:
            during.setattr(verify, "steps", stale)
            store.save(manager, create(step=1))
        store.save(manager, create(step=2))
    said = capsys.readouterr().err
    assert "1 is not saved (" in said and os.strerror(errno.ESTALE) in said
    assert verify.steps(tmp_path) == [2]
