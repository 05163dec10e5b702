"""The defender: trains a network."""
