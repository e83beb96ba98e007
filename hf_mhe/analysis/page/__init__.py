"""Reports as one self-contained page, and as figures."""
