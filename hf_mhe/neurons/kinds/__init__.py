"""Which weights of which module types are neurons, and how they are laid out: `pieces` of a module, `row_splits`."""
