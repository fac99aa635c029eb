"""Patches: changing what neurons do while a model runs.

``patch.py`` says what is written (pure), ``intervening.py`` writes it.
"""

from langneurons.patches.intervening import intervene, unreachable
from langneurons.patches.patch import POSITIONS, Add, Clamp, DiffMean, Patch, Scale, SetTo

__all__ = ["POSITIONS", "Add", "Clamp", "DiffMean", "Patch", "Scale", "SetTo", "intervene", "unreachable"]
