"""Commands that are killed: at random moments, and before or after what they do to files."""
