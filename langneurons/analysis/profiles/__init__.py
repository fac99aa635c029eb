"""Profiles of single neurons: the texts that move them, the tokens they promote, and the neurons like them."""
