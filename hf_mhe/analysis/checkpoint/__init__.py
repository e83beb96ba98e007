"""Where a checkpoint's files are, and its tensors one at a time."""
