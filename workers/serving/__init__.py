"""Records what the layers of a deployed map saw. Imports errors."""
