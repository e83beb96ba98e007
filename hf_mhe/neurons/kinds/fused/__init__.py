"""Fused layers: which rows of one weight are queries, keys and values, gates, or anything else."""
