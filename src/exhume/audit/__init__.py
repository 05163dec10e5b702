"""The auditor: sees the truth and the candidates, never the network."""
