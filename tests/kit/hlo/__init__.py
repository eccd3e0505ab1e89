"""Reading the text of an optimised HLO module, as `compiled.as_text()` gives it."""
