"""Looking: figures, and the pages made of them."""

from langneurons.views import plot
from langneurons.views.pages import neuron_page

__all__ = ["neuron_page", "plot"]
