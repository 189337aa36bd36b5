"""The review report: one HTML page about a job and the map picked from it, from the database alone."""
