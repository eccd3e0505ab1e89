"""Measuring what was learned, on cached features: kNN, logistic regression, collapse.

Nothing here knows about methods or models. `features.extract` runs an encoder over images once;
all else takes the arrays [n, d] that come out of it.
"""
