"""Damaged pictures: making them, and reading them as a run does in a process that may die."""
