"""A run's config, its folder, and the command that it came from."""
