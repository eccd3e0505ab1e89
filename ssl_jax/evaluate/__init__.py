"""Measuring what was learned: features of a run, probes of them, and whether they collapsed.

`probes` and `health` know nothing of methods or models: they take arrays [n, d]. `features` makes
those of a run, `probing` is what every job on a checkpoint shares.
"""
