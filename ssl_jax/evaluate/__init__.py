"""Measuring what was learned: kNN, logistic regression, collapse.

`features`, `knn`, `linear`, `collapse` and `accuracy` know nothing of methods or models: the first
runs a function over images once, the others take the arrays [n, d] that come out of it.
"""
