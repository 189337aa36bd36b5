"""What to measure next, by numpy alone. Imports metrics and errors."""
