"""Converts records to data frames and rows. Pure functions; imports formatting only."""
