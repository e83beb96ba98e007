"""The tasks: each module has `run(settings, seed, final) -> dict`, what one run measured, as JSON types."""
