"""A neuron's page, made when the neuron is clicked: of the texts of a corpus, or without any."""

import pandas as pd
import torch

from langneurons.analysis.ablation.result import Ablation
from langneurons.analysis.profiles.likeness import similar_neurons
from langneurons.analysis.profiles.outputs import output_tokens
from langneurons.analysis.profiles.profiling import profile
from langneurons.analysis.profiles.result import EXAMPLES, Profiles
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.corpora import Corpus
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.recording.statistics import ActivationStats
from langneurons.views.neuron_page import NeuronPage, neuron_page, page_content, rendered

TEXTS, OUTPUT_TOKENS, SIMILAR = 3, 10, 8


class Pages:
    """Pages of a model's neurons, each made once.

    Args:
        model: From ``load_model``.
        stats: Statistics of the model at the neurons' site.
        neurons: Whose languages the pages name.
        corpus: Texts to look through, None for pages without texts.
        polysemanticity: What is known of what neurons carry.
        ablation: What is known of what is lost without them.
        documents: How many documents a language to look through.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        stats: ActivationStats,
        neurons: NeuronSet,
        corpus: Corpus | None,
        polysemanticity: Polysemanticity | None,
        ablation: Ablation | None,
        documents: int,
    ) -> None:
        self._model, self._stats, self._neurons = model, stats, neurons
        self._corpus, self._documents = corpus, documents
        self._known = (polysemanticity, ablation, {"this set": neurons})
        self._made: dict[tuple[int, int], NeuronPage] = {}

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        return neuron in self._made

    def __getitem__(self, neuron: tuple[int, int]) -> NeuronPage:
        """The page of a neuron, by layer and index."""
        if neuron not in self._made:
            self._made[neuron] = self._without_texts(neuron) if self._corpus is None else self._with_texts(neuron)
        return self._made[neuron]

    def alone(self, neuron: tuple[int, int]) -> NeuronSet:
        """The neuron as a set of its own."""
        whole = self._neurons
        return NeuronSet.of({"chosen": [neuron]}, whole.shape, whole.site, whole.model, "chosen")

    def _with_texts(self, neuron: tuple[int, int]) -> NeuronPage:
        assert self._corpus is not None
        one = self.alone(neuron)
        profiles = profile(
            self._model, one, self._corpus, self._stats, TEXTS, documents=self._documents, progress=False
        )
        return neuron_page(profiles, neuron, self._stats, *self._known)

    def _without_texts(self, neuron: tuple[int, int]) -> NeuronPage:
        seen, one = view(self._model), self.alone(neuron)
        settings = {"model": seen.name, "fingerprint": self._stats.fingerprint, "site": one.site, "gated": seen.gated}
        profiles = Profiles(
            pd.DataFrame(columns=["text", "language", "document", "pieces"]),
            pd.DataFrame(columns=EXAMPLES),
            output_tokens(seen, one, OUTPUT_TOKENS),
            similar_neurons(seen, one, self._stats, SIMILAR),
            {**settings, "neurons": [neuron], "languages": []},
        )
        content = page_content(profiles, neuron, self._stats, *self._known)
        title = f"Layer {neuron[0]}, neuron {neuron[1]} of {seen.name}"
        return NeuronPage(neuron, title, rendered(content, brief=True))
