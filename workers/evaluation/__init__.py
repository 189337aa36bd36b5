"""Measuring one map of a model: its quality, its latency, its memory. Imports everything in workers but pools."""
