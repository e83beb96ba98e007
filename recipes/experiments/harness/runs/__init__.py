"""One run, and its record as a JSON line."""
