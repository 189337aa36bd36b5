"""Runs many maps of one model, and records what their layers saw. Imports backends."""
