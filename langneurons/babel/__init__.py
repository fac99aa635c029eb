"""babel, the embedded model: weights, tokenizer, phrasebook and model card, as plain files in this folder."""

from pathlib import Path

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "fr", "es", "vi", "zh", "hi", "ur")
