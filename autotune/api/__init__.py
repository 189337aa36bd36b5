"""The HTTP API: everything the command line can do with jobs, for users with a token."""
