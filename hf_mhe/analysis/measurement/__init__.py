"""What `evaluate.load(hf_mhe.measurement_path())` takes: a module of the library `evaluate`, its card and its page.

Nothing here is imported by the package: `evaluate` copies the script and imports the copy.
"""
