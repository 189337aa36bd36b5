"""Shows jobs: reads through the store, and changes jobs only through the functions of the command line."""
