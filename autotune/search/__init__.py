"""Drives one job: asks, submits, waits, records. Imports planner, jobs, store and maps."""
