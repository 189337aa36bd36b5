"""Looks at jobs: reads through the store, never changes anything but through the command line's functions."""
