"""Encoded pictures to pixels."""
