"""Kinds of interventions, one module each; every kind answers for itself (``Intervention``)."""
