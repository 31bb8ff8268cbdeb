"""Attacks: what gets past an intervention."""
