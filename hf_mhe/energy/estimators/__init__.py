"""Unbiased estimators of the energy and its gradient, for when the exact walk is too costly.

A sample of rows against all rows, and a rotating share of the layers.
"""
