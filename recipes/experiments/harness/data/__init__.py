"""What is trained on, from packages."""
