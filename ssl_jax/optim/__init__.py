"""Optimizers, their rules and schedules."""
