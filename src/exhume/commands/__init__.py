"""The commands. They take what was parsed, call, and print; what is done is done elsewhere."""
