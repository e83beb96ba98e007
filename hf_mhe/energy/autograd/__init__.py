"""How an energy is differentiated: by autograd, by a compiler, by `torch.func`, and where ranks divide the rows.

The walks compute value and gradient together; nothing here visits a pair.
"""
