"""Measure experts on held-out examples."""
