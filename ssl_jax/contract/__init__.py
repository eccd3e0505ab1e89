"""What a method, a source, a batch and an encoder are. It imports nothing of ours but the error."""
