"""Lets every process of the tests keep what it compiles; JAX calls `initialize` as it starts.

On CPU each process of a run has cache keys of its own (the topology is in them), and JAX lets
process 0 alone write: the others compile everything at every start, half of their CPU time here.
The programs are the same with and without. conftest.py puts this folder on PYTHONPATH.
"""

import types


def initialize():
    try:
        from jax._src import compiler

        alone = types.SimpleNamespace(process_id=0, client=None)
        compiler.distributed = types.SimpleNamespace(global_state=alone)
    except ImportError:  # another JAX: slower, no more
        pass
