"""The published procedures of Mondal et al. 2025 (arXiv 2503.17456), defects included, to compare the sound ones with.

Every public function says in one sentence what is wrong with it. LAPE's published variant is ``LAPE.mondal``, the
language sets are in ``corpora``; nothing here is needed for anything but comparing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
