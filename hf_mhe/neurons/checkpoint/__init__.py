"""The neuron groups of a checkpoint, from its names, shapes and config alone."""
