"""The choice of the regions' structure, on selection queries."""
