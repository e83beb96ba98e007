"""What the penalty adds up over the neuron groups: the energy, or another member of the family.

`MHEConfig(objective=...)` names it. `objective.py` is what the engines ask of one, `energy.py` the energy, `family.py`
the others, `family_members.py` the table of them, `choose.py` gives a config's terms, and `in_words.py` says what they
are.
"""
