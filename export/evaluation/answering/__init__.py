"""The questions of an evaluation, and their answers while they come."""
