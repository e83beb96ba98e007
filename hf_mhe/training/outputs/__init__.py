"""The energy of what a model puts out, of the batch of one process or of all ranks."""
