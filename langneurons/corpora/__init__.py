"""Documents per language: loaded, split, judged for purity, and packed into blocks of counted tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
