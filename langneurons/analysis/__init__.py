"""Analysis: understanding neurons and scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ablation": ["Ablation"],
        "comparison": ["Comparison"],
        "profiles": ["Profiles"],
        "screening": ["Screen"],
        "selectivity.reading": ["decompose"],
        "selectivity.result": ["Polysemanticity"],
        "selectivity.texts": ["LabelledTexts"],
        "validity": ["rerun"],
    },
)
