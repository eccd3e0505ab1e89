"""Weights of other frameworks to ours."""
