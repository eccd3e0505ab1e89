"""Telling people what happened: the console, metrics.jsonl and TensorBoard, pictures."""
