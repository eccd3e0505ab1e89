"""Checkpoints: saved whole, verified, read back whole or in part."""
