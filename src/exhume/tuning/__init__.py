"""The search for settings: many reconstructions of one network."""
