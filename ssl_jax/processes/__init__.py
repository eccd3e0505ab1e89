"""The processes of a run: found, joined, what they say to each other; and the host of each."""
