"""Calibration: one pass over representative inputs fixes the ranges of static quantization."""
