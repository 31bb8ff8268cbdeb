"""Hugging Face checkpoints as files: their architectures, digests and edits."""
