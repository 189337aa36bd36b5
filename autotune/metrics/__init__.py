"""Metrics, objectives and Pareto arithmetic on plain numbers. Imports errors only."""
