"""Tasks: what a model is asked to do in each language, scored item by item so that conditions can be paired."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
