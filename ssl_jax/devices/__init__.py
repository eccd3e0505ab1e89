"""Devices: the mesh, how a step is mapped over it, and what crosses it."""
