"""What neurons did: one pass over a corpus (record), the statistics it leaves, and looking at single neurons.

Nothing is imported here: statistics are read back without the libraries that models need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "recorder": ["record_caches"],
        "site_values": ["SiteValues"],
    },
)
