"""The interactive view of a neuron set: from the heatmap to a layer, a neuron, and what ablating it does to a text."""

from langneurons.views.explorer.exploring import Explorer, explore

__all__ = ["Explorer", "explore"]
