"""Is the score real? Reliability, and nulls that can be failed.

Nothing is imported here: tables of checks are read back without the libraries that models need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
