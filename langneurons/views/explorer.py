"""``ln.explore``: the interactive view of a neuron set, and what each of its clicks does, with widgets and without."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.profiles import EXAMPLES, TEXTS, Profiles
from langneurons.analysis.profiling import output_tokens, profile, similar_neurons
from langneurons.corpora import Corpus
from langneurons.errors import ModelError, NeuronSetError, StatisticsError, unknown
from langneurons.identification import NeuronSet
from langneurons.identification.controls import fitting_statistics
from langneurons.identification.neurons import check_neurons
from langneurons.models import view
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import SetTo
from langneurons.recording.looking import activations
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Profiling
from langneurons.views.looks import FONT
from langneurons.views.neuron_figures import layer_heatmap
from langneurons.views.pages import ANCHOR, NeuronPage, Results, neuron_page, page_content, rendered, visible
from langneurons.views.tokens import coloured_text
from langneurons.views.trials import Trial, ranked, response, try_out

Neuron = tuple[int, int]
WHATS = ("neuron", "layer", "language")
SAMPLE_LETTERS = 200
SEARCHED = 50  # neurons that a search lists
EXAMPLES_SHOWN, OUTPUT_TOKENS, SIMILAR = 3, 10, 8  # shown on a page, of each kind
WITHOUT_WIDGETS = (
    "Widgets are not available here (pip install 'langneurons[notebooks]', then start Jupyter again), so this is a "
    "still picture. The clicks are methods too: .click(language, layer), .search(text), .show((layer, neuron)), "
    ".ablate(value, text)."
)
STILL = (
    "The explorer works while its notebook runs. The methods .click(language, layer), .show((layer, neuron)) and "
    ".ablate(value, text) return what its clicks show."
)


def explore(
    model: torch.nn.Module,
    stats: ActivationStats,
    neurons: NeuronSet,
    corpus: Corpus | None = None,
    text: str | None = None,
    polysemanticity: Polysemanticity | None = None,
    ablation: Ablation | None = None,
    documents: int = 200,
) -> "Explorer":
    """Explore a neuron set in Jupyter: from the heatmap to a layer, to a neuron's page, to ablating it on your text.

    Args:
        model: A model returned by ``load_model``.
        stats: Statistics of the same model at the neurons' site.
        neurons: A neuron set.
        corpus: Texts to look through for those that activate a neuron; without it pages show no texts.
        text: Text to ablate on; by default the beginning of the corpus's first document in the chosen language.
        polysemanticity: Result of ``ln.polysemanticity``; pages then say what else a neuron carries.
        ablation: Result of ``ln.ablate``; pages then show measured effects.
        documents: Random documents per language to look through when a neuron is clicked.

    Returns:
        An explorer, which notebooks show as widgets or, where there are none, as a sentence and a figure.

    Raises:
        NeuronSetError: If the set is empty or of another shape.
        SiteMismatchError: If model, statistics and neurons do not belong together.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(7, 10), (7, 11)]}, stats.shape, "act")
        >>> explorer = ln.explore(model, stats, neurons)
        >>> len(explorer.click("hi", 7))
        2
        >>> explorer.show((7, 10))
        NeuronPage: Layer 7, neuron 10 of babel
        >>> explorer.ablate(0.0, "आज पड़ोसन के पास टोकरियाँ नहीं हैं।").about
        'neuron 10 of layer 7 set to 0'
    """
    check_neurons(neurons)
    if not len(neurons):
        raise NeuronSetError("The neuron set is empty: there is nothing to explore.")
    check_fits(SetTo(neurons, 0.0), view(model))
    fitting = fitting_statistics(stats, neurons.shape, neurons.site, view(model).fingerprint_at(neurons.site))
    results = Results(fitting, polysemanticity, ablation, {"this set": neurons})
    return Explorer(model, neurons, corpus, documents, results, text or "")


class Explorer:
    """What ``ln.explore`` returns; every click is a method too.

    Attributes:
        text: The text to ablate on.
        language: Language of the cell that was clicked last, at first that of the cell with most neurons.
        layer: Layer of the cell that was clicked last.
        neuron: Layer and index of the neuron shown last, None before.
        panel: The widgets, None where there are none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        neurons: NeuronSet,
        corpus: Corpus | None,
        documents: int,
        results: Results,
        text: str,
    ) -> None:
        assert results.stats is not None
        self._model, self._stats, self._neurons, self._corpus = model, results.stats, neurons, corpus
        self._documents, self._results = documents, results
        self._measure, self._responses = response(results.stats)
        self._pages: dict[Neuron, NeuronPage] = {}
        self._figure = layer_heatmap(neurons)
        self.text, self._sample = text, ""
        self.language, self.layer = self._strongest(neurons.languages)
        self.neuron: Neuron | None = None
        self.panel: Any = None
        with suppress(ImportError):  # ipywidgets, or the anywidget that it asks for, may not be installed
            from langneurons.views.explorer_panel import Panel  # noqa: PLC0415

            self.panel = Panel(self, self._figure, sorted(neurons.languages), neurons.shape[0])
        self.click(self.language, self.layer)

    def __repr__(self) -> str:
        return f"Explorer of {self._neurons!r}"

    def click(self, language: str, layer: int) -> pd.DataFrame:
        """Look at a cell of the heatmap: a layer's neurons of a language, the clearest first.

        Args:
            language: A label of the neuron set.
            layer: A layer of the model.

        Returns:
            One row per neuron: layer, neuron, own (the share of the language's tokens on which it is active, or its
            mean magnitude where the sign means nothing), elsewhere (the largest in another language), where (which
            one), and ahead (own - elsewhere).

        Raises:
            LanguageError: If there is no such label.
            NeuronSetError: If there is no such layer, or none of these neurons in it.
        """
        (language,) = self._neurons[language].languages
        table = ranked(self._neurons, self._stats.languages, self._responses, language, layer)
        self.language, self.layer = language, layer
        self._take_sample(language)
        if self.panel is not None:
            title = f"{language}, layer {layer}: {len(table)} neurons, {self._measure}"
            choices = []
            for _, index, own, elsewhere, where, _ in table.itertuples(index=False):
                other = f", at most {elsewhere:.2f} in {where}" if where else ""
                choices.append((f"{index}: {own:.2f}{other}", (layer, index)))
            self.panel.show_cell(language, layer, title, choices)
        return table

    def strongest_layer(self, language: str) -> int:
        """The layer with most neurons of a language."""
        return self._strongest([language])[1]

    def search(self, text: str) -> pd.DataFrame:
        """Look for the neurons of the set that respond most to a token or a text.

        Args:
            text: A token, or a text of any length that the model's context holds.

        Returns:
            One row per neuron, the strongest response first, at most 50: layer, neuron, language (its languages), token
            (on which it responds most), value (its activation there) and share (of its largest recorded value, by size;
            NaN where that was not recorded).

        Raises:
            ModelError: If the text is empty or too long.
        """
        values = activations(self._model, text, self._neurons)
        tokens = values.index.get_level_values("token").tolist()
        largest = self._largest()
        rows = []
        for (layer, index), column in zip(values.columns, values.to_numpy().T, strict=True):
            place = int(abs(column).argmax())
            value, most = float(column[place]), float("nan") if largest is None else float(largest[layer, index])
            own = [
                name for name, flat in self._neurons.members.items() if layer * self._neurons.shape[1] + index in flat
            ]
            rows.append((layer, index, ", ".join(own), tokens[place], value, abs(value) / most if most else 0.0))
        table = pd.DataFrame(rows, columns=["layer", "neuron", "language", "token", "value", "share"])
        by = ["share", "value"] if largest is not None else ["value"]
        table = table.sort_values(by, ascending=False, key=abs, kind="stable").head(SEARCHED).reset_index(drop=True)
        if self.panel is not None:
            choices = [
                (f"{ANCHOR.format(*row[:2])} ({row[2]}): {row[4]:.2f} on {visible(row[3])}", (row[0], row[1]))
                for row in table.itertuples(index=False)
            ]
            self.panel.show_choices(f"Neurons that respond most to {text.strip()[:40]!r}", choices)
        return table

    def show(self, neuron: Neuron) -> NeuronPage:
        """Look at a neuron, of the set or not.

        Args:
            neuron: Layer and index.

        Returns:
            Its page.

        Raises:
            StatisticsError: If the model has no such neuron.
        """
        layer, index = map(int, self._stats.check_neuron(neuron))
        neuron = (layer, index)
        if neuron not in self._pages:
            self._say(f"Looking at neuron {index} of layer {layer} ...")
            self._pages[neuron] = self._page(neuron)
        self.neuron, page = neuron, self._pages[neuron]
        if self.panel is not None:
            html = _link(neuron) + self._notes(neuron) + self._on_the_text(neuron) + Markup(page._repr_html_())
            self.panel.show_page(neuron, html, self._range(neuron))
        self._say("")
        return page

    def ablate(self, value: float = 0.0, text: str | None = None, what: str = "neuron") -> Trial:
        """Set neurons to a value, and see what that does to a text.

        Args:
            value: The value to set the neurons to.
            text: The text; by default the last one.
            what: "neuron" for the neuron shown last, "layer" for the neurons of the language and layer clicked last, or
                "language" for all neurons of that language.

        Returns:
            The loss of every token, and how the model goes on, without and with it.

        Raises:
            NeuronSetError: If no neuron was shown.
            ModelError: If the text is empty or too long.
            TaskError: If it leaves no room in the model's context to go on.
        """
        self._set_text(self.text if text is None else text)
        neurons, name = self._ablated(what)
        self._say("Reading the text ...")
        trial = try_out(self._model, SetTo(neurons, value), self.text, f"{name} set to {value:g}")
        if self.panel is not None:
            self.panel.show_trial(value, trial._repr_html_())
        self._say("")
        return trial

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display  # noqa: PLC0415 (only IPython calls this)

        if self.panel is None:
            display(HTML(Markup("<p>{}</p>").format(WITHOUT_WIDGETS)), self._figure)
            return
        # Where no kernel runs, such as on a code host's page, what follows stands in place of the widgets.
        still = Markup("<p>{}</p>").format(STILL) + Markup(self._neurons.counts().to_html())
        display(self.panel.box._repr_mimebundle_() | {"text/html": still, "text/plain": repr(self)}, raw=True)

    def _set_text(self, text: str) -> None:
        self.text = text
        if self.panel is not None:
            self.panel.show_text(text)

    def _say(self, sentence: str) -> None:
        if self.panel is not None:
            self.panel.say(sentence)

    def _alone(self, neuron: Neuron) -> NeuronSet:
        """The neuron as a set of its own."""
        whole = self._neurons
        return NeuronSet.of({"chosen": [neuron]}, whole.shape, whole.site, whole.model, "chosen")

    def _page(self, neuron: Neuron) -> NeuronPage:
        model_view, alone = view(self._model), self._alone(neuron)
        if self._corpus is not None:
            options = Profiling(k=EXAMPLES_SHOWN, documents=self._documents)
            profiles = profile(self._model, alone, self._corpus, self._stats, profiling=options, progress=False)
            return neuron_page(profiles, neuron, *self._results)
        of_model = {"model": model_view.name, "fingerprint": self._stats.fingerprint}
        profiles = Profiles(
            pd.DataFrame(columns=TEXTS),
            pd.DataFrame(columns=EXAMPLES),
            output_tokens(model_view, alone, OUTPUT_TOKENS),
            similar_neurons(model_view, alone, self._stats, SIMILAR),
            {**of_model, "site": alone.site, "gated": model_view.gated, "neurons": [neuron], "languages": []},
        )
        content = page_content(profiles, neuron, self._results)
        title = f"Layer {neuron[0]}, neuron {neuron[1]} of {model_view.name}"
        return NeuronPage(neuron, title, rendered(content, brief=True))

    def _notes(self, neuron: Neuron) -> Markup:
        sentences = []
        if not bool(self._neurons.mask()[neuron]):
            sentences.append(f"Neuron {neuron[1]} of layer {neuron[0]} belongs to no language of this set.")
        if self._corpus is None:
            sentences.append("Give explore() a corpus= to see the texts that activate it.")
        return Markup("").join(Markup("<p>{}</p>").format(sentence) for sentence in sentences)

    def _on_the_text(self, neuron: Neuron) -> Markup:
        """The neuron's activation on every token of the text, or why there is none."""
        if not self.text.strip():
            return Markup("")
        try:
            values = activations(self._model, self.text, self._alone(neuron))
        except ModelError as error:
            return Markup("<p>{}</p>").format(error)
        tokens = coloured_text(values.index.get_level_values("token").tolist(), values.iloc[:, 0].tolist())
        return Markup('<div style="font-family:{}"><p><b>On your text</b></p>{}</div>').format(FONT, tokens)

    def _ablated(self, what: str) -> tuple[NeuronSet, str]:
        """The neurons to ablate, and their name."""
        if what not in WHATS:
            raise NeuronSetError(unknown("what", what, WHATS))
        if what == "neuron":
            if self.neuron is None:
                raise NeuronSetError("No neuron is chosen: choose one of the list, or call .show((layer, neuron)).")
            return self._alone(self.neuron), f"neuron {self.neuron[1]} of layer {self.neuron[0]}"
        neurons = self._neurons[self.language]
        if what == "language":
            return neurons, f"{len(neurons):,} {self.language} neurons"
        pairs = [(self.layer, index) for index in neurons.per_layer()[self.layer].tolist()]
        here = NeuronSet.of({self.language: pairs}, neurons.shape, neurons.site, neurons.model)
        return here, f"{len(here):,} {self.language} neurons of layer {self.layer}"

    def _take_sample(self, language: str) -> None:
        """Offer a text in the language, unless the user has written one."""
        if self._corpus is None or self.text != self._sample or language not in self._corpus:
            return
        self._sample = self._corpus.text(language, 0)[:SAMPLE_LETTERS]
        self._set_text(self._sample)

    def _strongest(self, languages: Sequence[str]) -> tuple[str, int]:
        """Language and layer of the cell with most neurons."""
        counts = self._neurons.counts().loc[list(languages)].to_numpy()
        row, layer = divmod(int(counts.argmax()), counts.shape[1])
        return languages[row], layer

    def _largest(self) -> Float[Tensor, "layer neuron"] | None:
        """Each neuron's largest recorded value, by size; None for published counts."""
        try:
            pooled = self._stats.pooled()
            return torch.maximum(pooled.minimum().values.abs(), pooled.maximum().values.abs())
        except StatisticsError:
            return None

    def _range(self, neuron: Neuron) -> tuple[float, float]:
        """Values that the neuron takes, zero among them."""
        try:
            pooled = self._stats.pooled()
            low, high = float(pooled.minimum()[neuron]), float(pooled.maximum()[neuron])
        except StatisticsError:  # published counts
            return -1.0, 1.0
        return min(low, 0.0), max(high, 0.0)


def _link(neuron: Neuron) -> Markup:
    """Where this page is, to copy: a link to it in this notebook, and the neuron as methods take it."""
    return Markup(
        '<p>To copy: <a href="#{0}">{0}</a>, <code style="user-select:all" title="One click selects it">{1}</code></p>'
    ).format(ANCHOR.format(*neuron), neuron)
