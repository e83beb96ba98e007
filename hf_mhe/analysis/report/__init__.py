"""The values of a report, and how they are saved."""
