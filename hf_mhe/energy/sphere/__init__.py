"""Mathematics of the sphere that distances are built on: the angle between random directions, designs, lower bounds.

Plain numbers in float64; nothing here knows a potential.
"""
