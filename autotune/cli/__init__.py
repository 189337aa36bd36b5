"""The ``autotune`` command. Data goes to standard output, everything else to standard error."""
