"""Drives one job: asks the sampler, submits maps, waits and records. Imports planner, jobs, store and maps."""
