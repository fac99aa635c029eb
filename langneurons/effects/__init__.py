"""Paired effects with intervals, tests and verdicts, and where they lie among controls; pure."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"estimation": ["Effect", "effect"], "calibration": ["calibrate"], "table": ["EffectTable"]},
)
