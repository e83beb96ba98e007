"""What an energy is compared with: the mean of a random draw, the bound below it, and the score between the two.

Plain numbers of n, d and the potential; no tensor comes in.
"""
