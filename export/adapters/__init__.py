"""A plan as an adapter of another tool: PEFT, or ONNX Runtime."""
