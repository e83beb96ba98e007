"""What is trained, and how it grows."""
