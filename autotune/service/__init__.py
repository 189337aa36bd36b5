"""The service: controllers claim jobs from the queue and run each in its own process."""
