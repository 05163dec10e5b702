"""The attacker: sees a network's weights and nothing else."""
