"""Patches: changing what neurons do while a model runs.

``patch.py`` says what is written (pure), ``intervening.py`` writes it.
"""

from langneurons.patches.intervening import intervene, unreachable
from langneurons.patches.patch import POSITIONS, Add, Clamp, DiffMean, Patch, Scale, SetTo, control_patches

Set = SetTo  # the name in version 0.1.0

__all__ = [
    "POSITIONS",
    "Add",
    "Clamp",
    "DiffMean",
    "Patch",
    "Scale",
    "Set",
    "SetTo",
    "control_patches",
    "intervene",
    "unreachable",
]
