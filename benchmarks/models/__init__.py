"""Published checkpoints, fetched from packages by name, tuned, and compared with what is done by hand."""
