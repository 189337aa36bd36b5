"""Decides what to measure next, with numpy only. Imports metrics and errors."""
