"""A job as plain data, and the rules of its life cycle. No I/O; imports metrics and errors."""
