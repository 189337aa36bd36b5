"""Records as data frames and rows. Pure functions; imports formatting only."""
