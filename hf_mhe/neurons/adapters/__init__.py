"""Adapters of peft: the weight that an adapted layer computes with, and the adapter's own matrices.

peft is never imported: its classes are known by their names, so that a model without adapters costs nothing.
"""
