"""Training only them: masked updates of chosen neurons, fine-tuning, and the transfer experiment."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
