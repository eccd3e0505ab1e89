"""Logs of a run: the console, metrics.jsonl, TensorBoard."""
