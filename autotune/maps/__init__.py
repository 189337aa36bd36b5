"""Quantization maps as files: written, applied, verified. Imports jobs and metrics."""
