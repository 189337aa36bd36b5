"""Denoisers and text-to-image pipelines."""
