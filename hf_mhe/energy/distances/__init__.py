"""Distances on the sphere: one file each, with everything that an energy has to know about it, and the table of them.

To add one: its name in `hf_mhe/choices.py`, its file here, its line in `table.py`, its formula in `tests/oracle.py`.
"""
