"""ONNX graphs: read, written and taken apart."""
