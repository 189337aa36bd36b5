"""A job as plain data, and the rules of its life. No input or output; imports metrics and errors."""
