"""What a class's own code says about its parameters, read and never run."""
