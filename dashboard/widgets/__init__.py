"""What pages are put together from. Imports charts, tables and queries."""
