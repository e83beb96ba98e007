"""From numbers to documents and figures."""
