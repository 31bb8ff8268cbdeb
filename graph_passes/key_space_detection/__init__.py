"""Key Space Detection in a decoder graph."""
