"""Widgets shared by pages. Imports charts, tables and queries."""
