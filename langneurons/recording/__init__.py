"""What neurons did: one pass over a corpus (record), the statistics it leaves, and looking at single neurons.

Nothing is imported here: statistics are read back without the libraries that models need.
"""
