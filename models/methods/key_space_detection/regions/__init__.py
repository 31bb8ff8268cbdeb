"""How regions of key space are fitted: one module a shape."""
