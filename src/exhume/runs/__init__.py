"""The run folder, and the work on it."""
