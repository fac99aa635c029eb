"""Models: HookedTransformer or TransformerBridge behind one vocabulary.

``load_model`` returns the TransformerLens object itself; ``view`` returns what the other rooms need of it. Only this
room knows how the two classes differ, and the names of their hook points.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
