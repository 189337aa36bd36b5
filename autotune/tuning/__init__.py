"""One call that tunes a model: from what a user has in hand to a finished job and its maps."""
