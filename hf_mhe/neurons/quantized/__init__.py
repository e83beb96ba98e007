"""Quantized weights as the numbers they stand for: of live layers, and of a checkpoint's tensors.

One file per format; each asks the library that owns the format, and says which package that is where it is missing.
"""
