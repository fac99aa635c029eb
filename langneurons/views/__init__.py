"""Looking: figures, and the pages made of them."""

from langneurons.views import plot

__all__ = ["plot"]
