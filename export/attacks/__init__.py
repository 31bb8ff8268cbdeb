"""Attacks: forgotten prompts that get past an intervention."""
