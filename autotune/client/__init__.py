"""Jobs as their users see them: the same calls on a database and on the HTTP API of a service."""
