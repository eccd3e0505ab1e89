"""Networks from a representation back to data."""
