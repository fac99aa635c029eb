"""Baking: patches and trained updates written into plain weights, so that any engine runs them.

``folding.py`` says which weights do what patches do (pure), ``checkpoint.py`` has the weights that they are written
into, ``baked.py`` writes and checks the folder, and ``card.py`` its README.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
