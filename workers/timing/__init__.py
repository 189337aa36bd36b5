"""Latency: how passes and layers are timed, and the device kept alone. Imports device and measurement."""
