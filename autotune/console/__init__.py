"""Text for people on terminals and in notebooks: tables, figures, progress."""
