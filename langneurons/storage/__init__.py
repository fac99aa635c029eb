"""Every file langneurons writes or reads back: JSON, safetensors and parquet, atomic, versioned, checked.

A file appears whole under its name or not at all. JSON artefacts carry a ``schema`` such as
``"langneurons/neuron-set/1"``. Every file has a checksum, which is verified before anything else looks at the file:
JSON carries its own, a result's JSON those of its tables and tensors, other files have one beside them. What other
programs write, and JSON that was edited by hand, needs none.

Names are declared in ``__init__.pyi`` and imported when they are first used, because pandas and torch take long.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
