"""Collapse, and what distances between features say."""
