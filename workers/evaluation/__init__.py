"""Measurement of one map of a model: quality, latency and memory. Imports everything in workers except pools."""
