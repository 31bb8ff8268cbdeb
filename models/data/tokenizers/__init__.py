"""Tokenizers: those of transformers, and our own reader of their files."""
