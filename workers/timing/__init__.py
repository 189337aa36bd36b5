"""Latency: timing of passes and layers, and the device lock. Imports device and measurement."""
