"""Data: rows of files as token ids, and variants of their prompts."""
