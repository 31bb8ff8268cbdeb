"""The bundled skills model: its data generator, its tokenizer and its checkpoint."""
