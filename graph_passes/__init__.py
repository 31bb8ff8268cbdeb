"""Floor 2: ONNX in, ONNX out. The anatomy of a decoder graph and one pass per kind of intervention."""
