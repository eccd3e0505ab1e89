"""Linear probes on maps of features."""
