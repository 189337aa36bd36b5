"""Writes, applies and verifies quantization map files. Imports jobs and metrics."""
