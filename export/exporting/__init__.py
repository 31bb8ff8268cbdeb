"""Exporting: a checkpoint becomes an ONNX graph."""
