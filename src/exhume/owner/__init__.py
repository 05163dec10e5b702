"""The owner of a network: what she sees who has its weights and its training images, and no attacker sees."""
