"""Running decoder graphs with ONNX Runtime."""
