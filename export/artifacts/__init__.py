"""Artifacts and ONNX directories as files."""
