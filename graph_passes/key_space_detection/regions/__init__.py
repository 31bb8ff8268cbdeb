"""How a graph computes the margins to regions of key space: one module a shape."""
