"""Mixtures of experts: routers, experts, and what these compute."""
