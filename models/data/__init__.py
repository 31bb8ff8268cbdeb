"""Data: rows of files as token ids, and other forms of their queries."""
