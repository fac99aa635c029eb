"""The widgets of the explorer: they pass clicks on to it, and show its results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.callbacks import Points

from langneurons.errors import LangNeuronsError
from langneurons.views.explorer import Explorer
from langneurons.views.looks import FONT

WHAT = {"this neuron": "neuron", "its layer's neurons of the language": "layer", "all of the language": "language"}
HOW = (
    "Click a cell of the map (or choose language and layer, or search for a token or a text), then a neuron; then "
    "ablate it on a text of your own."
)
SELECTED = {"type": "rect", "line": {"color": "#D55E00", "width": 3}, "fillcolor": "rgba(0,0,0,0)"}
WIDE = ipywidgets.Layout(width="auto")
CLASS = "langneurons-explorer"
# A text area is set in a monospaced face from left to right, which breaks words of Arabic script apart.
STYLE = """<style>
.CLASS textarea { font-family: FONT; unicode-bidi: plaintext; text-align: start; }
</style>""".replace("CLASS", CLASS).replace("FONT", FONT)


class Panel:
    """Heatmap, list of neurons, page, text and slider.

    Args:
        explorer: The explorer, which does what is clicked and shows its result through the panel.
        figure: The heatmap, languages down and layers across.
        languages: Labels of the neuron set.
        layers: Number of layers.
    """

    def __init__(self, explorer: Explorer, figure: go.Figure, languages: Sequence[str], layers: int) -> None:
        self._explorer, self._languages, self._quiet, self._tried = explorer, list(languages), False, False
        self.heatmap = go.FigureWidget(figure)
        self.heatmap.update_layout(title_subtitle_text="")  # the widget's plotly draws it across the title
        self.language = ipywidgets.Dropdown(options=self._languages, value=explorer.language, description="language")
        self.layer = ipywidgets.Dropdown(options=range(layers), value=explorer.layer, description="layer")
        self.search = ipywidgets.Text(
            description="search", placeholder="a token or a text, then Enter", continuous_update=False
        )
        self.neurons = ipywidgets.Select(options=[], rows=8, layout=WIDE)
        self.page = ipywidgets.HTML(layout=WIDE)
        self.text = ipywidgets.Textarea(
            value=explorer.text, placeholder="A text in any language", description="your text", rows=3, layout=WIDE
        )
        self.what = ipywidgets.Dropdown(options=list(WHAT.items()), description="ablate")
        self.value = ipywidgets.FloatSlider(
            value=0.0, min=-1.0, max=1.0, step=0.01, description="set to", continuous_update=False
        )
        self.button = ipywidgets.Button(description="ablate", button_style="primary", tooltip="Read the text with it")
        self.trial = ipywidgets.HTML(layout=WIDE)
        self.status = ipywidgets.HTML(layout=WIDE)
        self.neurons_title = ipywidgets.HTML()
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HTML(Markup("{}<p>{}</p>").format(Markup(STYLE), HOW)),
                self.heatmap,
                ipywidgets.HBox([self.language, self.layer, self.search], layout=row),
                self.status,
                self.neurons_title,
                self.neurons,
                self.page,
                self.text,
                ipywidgets.HBox([self.what, self.value, self.button], layout=row),
                self.trial,
            ]
        ).add_class(CLASS)
        self._listen()

    def say(self, sentence: str) -> None:
        """Show a sentence, or nothing."""
        self.status.value = Markup('<p role="status"><b>{}</b></p>').format(sentence) if sentence else ""

    def show_cell(self, language: str, layer: int, title: str, choices: Sequence[tuple[str, tuple[int, int]]]) -> None:
        """List the neurons of a cell, and mark it.

        Args:
            language: Language of the cell.
            layer: Layer of the cell.
            title: Title of the list.
            choices: Pairs of a line of text and the neuron.
        """
        row = self._languages.index(language)
        corners = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        self.heatmap.update_layout(shapes=[SELECTED | corners])
        with self._quietly():
            self.language.value, self.layer.value = language, layer
        self.show_choices(title, choices)

    def show_choices(self, title: str, choices: Sequence[tuple[str, tuple[int, int]]]) -> None:
        """List neurons under a title: pairs of a line of text and the neuron."""
        with self._quietly():
            self.neurons.options = list(choices)
            self.neurons.index = None
        self.neurons_title.value = Markup("<b>{}</b>").format(title)

    def show_page(self, neuron: tuple[int, int], html: str, values: tuple[float, float]) -> None:
        """Show a neuron's page, and let the slider go over the values it takes.

        Args:
            neuron: Layer and index.
            html: The page.
            values: Smallest and largest value of the neuron.
        """
        self.page.value, self.trial.value, self._tried = html, "", False
        with self._quietly():
            choices = [choice for _, choice in self.neurons.options]
            self.neurons.index = choices.index(neuron) if neuron in choices else None
            self._set_range(*values)

    def show_trial(self, value: float, html: str) -> None:
        """Show what a value did to the text."""
        self.trial.value, self._tried = html, True
        with self._quietly():
            self._set_range(min(self.value.min, value), max(self.value.max, value))
            self.value.value = value

    def show_text(self, text: str) -> None:
        """Put a text into the text area."""
        with self._quietly():
            self.text.value = text

    def _set_range(self, low: float, high: float) -> None:
        value = min(max(self.value.value, low), high)
        # One message each: the slider refuses bounds that cross.
        with self.value.hold_trait_notifications():
            self.value.min, self.value.max = low, high
            self.value.value, self.value.step = value, max((high - low) / 200, 1e-6)

    def _listen(self) -> None:
        heatmap: Any = self.heatmap.data
        heatmap[0].on_click(self._cell_clicked)
        self.language.observe(self._language_chosen, "value")
        self.layer.observe(self._layer_chosen, "value")
        self.search.observe(self._searched, "value")
        self.neurons.observe(self._neuron_chosen, "value")
        self.text.observe(self._typed, "value")
        self.button.on_click(lambda _: self._ablate())
        self.value.observe(self._moved, "value")

    def _cell_clicked(self, trace: object, points: Points, state: object) -> None:
        if points.xs:
            rows: Any = self.heatmap.data[0]
            language = self._languages[list(rows.y).index(points.ys[0])]
            self._do(self._explorer.click, language, int(points.xs[0]))

    def _language_chosen(self, change: object) -> None:
        if not self._quiet:
            language = str(self.language.value)
            self._do(self._explorer.click, language, self._explorer.strongest_layer(language))

    def _layer_chosen(self, change: object) -> None:
        if not self._quiet:
            self._do(self._explorer.click, self.language.value, self.layer.value)

    def _searched(self, change: object) -> None:
        if self.search.value.strip():
            self._do(self._explorer.search, self.search.value)

    def _neuron_chosen(self, change: object) -> None:
        neuron = self.neurons.value
        if not self._quiet and neuron is not None:
            self._do(self._explorer.show, neuron)

    def _typed(self, change: object) -> None:
        if not self._quiet:
            self._explorer.text = self.text.value

    def _moved(self, change: object) -> None:
        if self._tried and not self._quiet:
            self._ablate()

    def _ablate(self) -> None:
        self._do(self._explorer.ablate, self.value.value, self.text.value, self.what.value)

    def _do(self, action: Callable[..., object], *arguments: object) -> None:
        """Do what the user asked for; errors are shown in the panel, where the user looks."""
        self.say("")
        try:
            action(*arguments)
        except LangNeuronsError as error:
            self.say(str(error))
        except Exception as error:
            self.say(f"This failed ({type(error).__name__}: {error}); see the log of the kernel for details.")
            raise

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change widgets inside the block without acting as if the user had changed them."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
