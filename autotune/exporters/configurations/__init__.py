"""Configurations of other quantization tools, written from a map. Imports exporters and maps."""
