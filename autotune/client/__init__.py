"""Operations on jobs for users: the same calls work on a database and on a service's HTTP API."""
