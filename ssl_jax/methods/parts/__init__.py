"""Parts of state that several methods keep."""
