"""Features of an encoder: computed, kept with their process, judged."""
