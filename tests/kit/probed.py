"""The encoder of a method that probes read."""


def variables(method, params, state):
    """Of the encoder that the method names first."""
    return next(iter(method.encoders.values())).variables(params, state)


def features(method):
    """(variables, batch) -> features of that encoder."""
    return next(iter(method.encoders.values())).features
