"""The HTTP API: everything the command line can do with jobs, for those who have a token."""
