"""Evaluation: what a patch did, measured in rows and judged as paired effects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dosing": ["dose", "equal_dose"],
        "evaluation": ["Evaluation", "Factorial"],
        "sweeping": ["Dose", "deactivation_doses"],
    },
)
