"""Losses: pure functions on embeddings. No networks, no state."""
