"""One neuron on one page: its activity in each language, its texts, its output, and the effect of ablating it."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from markupsafe import Markup
from torch import Tensor

from langneurons import storage
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.profiles import NeuronProfile, Profiles
from langneurons.analysis.quadrants import mean_up, shares
from langneurons.errors import StaleArtefactError, StatisticsError
from langneurons.identification import NeuronSet
from langneurons.identification.standing import SEPARATOR
from langneurons.recording.statistics import ActivationStats
from langneurons.storage.presenting import Column
from langneurons.views.looks import language_class, language_styles
from langneurons.views.style import TEMPLATES
from langneurons.views.tokens import coloured_text, whole_characters

KINDS = ("top", "median", "random")
SIGN_WORDS = {"+": "> 0", "-": "≤ 0"}
BEFORE, AFTER = 36, 24  # characters shown around the strongest token, in brief
ANCHOR = "L{}N{}"
SIMILAR = {
    "activity": "are active on the same texts, or on others if negative (correlation over languages and documents)",
    "direction": "write in the same direction, or the opposite one if negative (cosine)",
}
VALUE, PERCENT = Column(), Column(scale=100)
UP = Column(digits=2, signed=True).text
OPPOSITE = {"promoted": "suppressed", "suppressed": "promoted"}
QUADRANT_NAMES = {
    f"{gate}{up}": f"gate {SIGN_WORDS[gate]}, up {SIGN_WORDS[up]}" for gate in SIGN_WORDS for up in SIGN_WORDS
}


class Results(NamedTuple):
    """What a page shows beside a neuron's profile, as far as there is any.

    Attributes:
        stats: Statistics: numbers and distributions per language.
        polysemanticity: What the neuron carries of language and of a task.
        ablation: What ablating it changes.
        neurons: Method -> neuron set: the languages that it belongs to.
    """

    stats: ActivationStats | None
    polysemanticity: Polysemanticity | None
    ablation: Ablation | None
    neurons: Mapping[str, NeuronSet]


@dataclass(frozen=True)
class NeuronPage:
    """A neuron's page; a notebook shows it, and ``save`` writes it to a file that opens anywhere.

    Attributes:
        neuron: Layer and index.
        title: Title of the page.
        body: Its HTML, escaped, without a script.
    """

    neuron: tuple[int, int]
    title: str
    body: Markup

    def _repr_html_(self) -> str:
        return f"<style>{language_styles()}{own_files('neuron_page.css')}</style>{self.body}"

    def __repr__(self) -> str:
        return f"NeuronPage: {self.title}"

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file.

        Returns:
            The path.
        """
        page = TEMPLATES.get_template("single_page.html.jinja")
        style = language_styles() + own_files("base.css", "neuron_page.css")
        storage.write_text(Path(path), page.render(title=self.title, body=self.body, style=style))
        return Path(path)


def neuron_page(
    profiles: Profiles,
    neuron: tuple[int, int],
    stats: ActivationStats | None = None,
    polysemanticity: Polysemanticity | None = None,
    ablation: Ablation | None = None,
    neurons: Mapping[str, NeuronSet] | None = None,
) -> NeuronPage:
    """Make the page of one neuron.

    Args:
        profiles: What ``ln.profile`` returned.
        neuron: Layer and index, one of the profiles'.
        stats: Statistics, which add numbers and distributions per language.
        polysemanticity: Result of ``ln.polysemanticity``, which adds what the neuron carries of language and of a task.
        ablation: Result of ``ln.ablate``, which adds what ablating the neuron changes.
        neurons: Method -> neuron set, which add the languages that the neuron belongs to.

    Returns:
        The page.

    Raises:
        NeuronSetError: If the neuron was not profiled.
        StaleArtefactError: If a result belongs to another model or site.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> texts = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> profiles = ln.profile(model, neurons, texts, k=1, progress=False)
        >>> ln.views.neuron_page(profiles, profiles.neurons[0], stats)
        NeuronPage: Layer ..., neuron ... of babel
    """
    profiles.check_neuron(neuron)
    results = Results(stats, polysemanticity, ablation, neurons or {})
    check_belongs(profiles, results)
    content = page_content(profiles, neuron, results)
    texts = _texts(profiles, content["profile"].examples)
    content["texts"] = sorted(texts, key=lambda group: group[0] not in content["own"])
    title = f"Layer {neuron[0]}, neuron {neuron[1]} of {profiles.settings['model']}"
    return NeuronPage(neuron, title, rendered(content, brief=False))


def check_belongs(profiles: Profiles, results: Results) -> None:
    """Refuse to show results of different models or sites side by side.

    Raises:
        StaleArtefactError: If they belong to different ones.
    """
    stats, polysemanticity, ablation, neurons = results
    if stats is not None:
        profiles.check(stats.at(profiles.site) if profiles.site in stats.sites else stats)
    for neuron_set in neurons.values():
        profiles.check(neuron_set)
    for name, result in (("polysemanticity", polysemanticity), ("ablation", ablation)):
        site = None if result is None else result.settings.get("site")
        if site not in (None, profiles.site):
            raise StaleArtefactError(f"The profiles are of site {profiles.site!r}, the {name} of {site!r}.")


def page_content(profiles: Profiles, neuron: tuple[int, int], results: Results) -> dict[str, Any]:
    """Collect what the template shows of a neuron, texts in brief."""
    stats, polysemanticity, ablation, neurons = results
    profile, settings, site = profiles[neuron], profiles.settings, profiles.site
    labels = list(_labels(neurons, neuron))
    own = {language for _, languages, _ in labels for language in languages}
    recorded = None if stats is None or site not in stats.sites else stats.at(site)
    outlines = None if recorded is None else strips(recorded, neuron)
    return {
        "neuron": neuron,
        "profile": profile,
        "profiles": profiles,
        "about": settings,
        "signless": settings["gated"] and site in ("pre", "act"),
        "labels": labels,
        "own": own,
        "outputs": list(_outputs(profile)),
        "signs": list(_signs(profile.quadrants)),
        "strongest": list(_strongest(profile.quadrants)),
        "languages": {} if stats is None or recorded is None else _languages(stats, site, neuron, outlines),
        "strips": outlines,
        "strip": {"width": BINS * STEP, "height": HEIGHT},
        "quantity": "z" if site in ("pre", "act") else "values",
        "carried": [] if polysemanticity is None else _of_neuron(polysemanticity.rows, neuron),
        "task": "" if polysemanticity is None else polysemanticity.settings.get("task", "the task"),
        "ablated": [] if ablation is None else _of_neuron(ablation.rows, neuron),
        "ablation": ablation,
        "similar": SIMILAR,
        "brief": sorted(_brief(profiles, profile.examples), key=lambda text: text["language"] not in own),
        "texts": [],
    }


def rendered(content: Mapping[str, object], brief: bool) -> Markup:
    """Write the page; in brief, only the strongest text of each language."""
    means = {
        "language_class": language_class,
        "anchor_of": ANCHOR.format,
        "Column": Column,
        "value": VALUE.text,
        "percent": PERCENT.text,
        "visible": visible,
        "quadrants": list(QUADRANT_NAMES.values()),
    }
    page = TEMPLATES.get_template("neuron_page.html.jinja")
    return Markup(page.render(**content, **means, in_brief=brief))  # noqa: S704


def own_files(*names: str) -> Markup:
    """Style sheets or scripts of ours, one after the other, as they are."""
    folder = Path(__file__).parent / "templates"
    return Markup("".join((folder / name).read_text("utf-8") for name in names))  # noqa: S704


def _labels(neurons: Mapping[str, NeuronSet], neuron: tuple[int, int]) -> Iterator[tuple[str, list[str], str]]:
    """Method, the neuron's labels, and where else it is above the bar, and highest."""
    for method, neuron_set in neurons.items():
        flat = neuron[0] * neuron_set.shape[1] + neuron[1]
        if own := [label for label, members in neuron_set.members.items() if flat in members]:
            place = np.array([flat])
            above, highest = neuron_set.languages_above(place)[0], neuron_set.languages_highest(place)[0]
            also = [language for language in above.split(SEPARATOR) if above and language not in own]
            notes = [f"above the bar also in {SEPARATOR.join(also)}"] * bool(also)
            notes += [f"highest in {highest}"] * (bool(highest) and own != [highest])
            notes += ["in no other language"] * (bool(highest) and own == [highest] == above.split(SEPARATOR))
            yield method, own, "; ".join(notes)


def _outputs(profile: NeuronProfile) -> Iterator[tuple[str, pd.DataFrame]]:
    """Output tokens, as the sign of ``up`` in the languages has them; as the direction has them where it has none."""
    signs = mean_up(profile.quadrants)
    by_effect = dict(list(profile.outputs.groupby("effect")))
    if not signs:
        yield from ((f"{effect} output tokens", rows) for effect, rows in by_effect.items())
        return
    for sign in (1, -1):
        languages = [f"{language} ({UP(mean)})" for language, mean in signs.items() if (mean < 0) == (sign < 0)]
        for word, effect in (("promotes", "promoted"), ("suppresses", "suppressed")):
            rows = by_effect.get(effect if sign > 0 else OPPOSITE[effect])
            if languages and rows is not None:
                yield f"in {', '.join(languages)} it {word}", rows.assign(change=sign * rows["change"])


def _signs(quadrants: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Language, share of its tokens in each quadrant, and mean ``up`` where the gate is positive."""
    means = mean_up(quadrants)
    for language, of_language in shares(quadrants).iterrows() if len(quadrants) else ():
        numbers_of_language = [PERCENT.text(float(of_language[name])) for name in QUADRANT_NAMES]
        yield str(language), [*numbers_of_language, UP(means.get(str(language)))]


def _strongest(quadrants: pd.DataFrame) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """For each quadrant its strongest text in each language, the strongest first."""
    for name, title in QUADRANT_NAMES.items():
        rows = quadrants.loc[(quadrants["gate"] + quadrants["up"] == name) & (quadrants["tokens"] > 0)]
        texts = [
            {
                "language": row["language"],
                "value": VALUE.text(row["value"]),
                "before": shortened(row["text"][: row["start"]], BEFORE, end=False),
                "peak": row["text"][row["start"] : row["end"]],
                "after": shortened(row["text"][row["end"] :], AFTER, end=True),
            }
            for row in rows.sort_values("value", key=abs, ascending=False).to_dict("records")
        ]
        if texts:
            yield title, texts


def _languages(
    stats: ActivationStats, site: str, neuron: tuple[int, int], outlines: "Strips | None"
) -> dict[str, list[str]]:
    """Language -> share of tokens on which the neuron is active, its mean, and its quantiles, as they are printed."""
    probability, mean = numbers(stats, site)
    rows = {}
    for position, language in enumerate(stats.languages):
        place = (position, *neuron)
        values = [None if mean is None else float(mean[place]), *(outlines.quantiles[language] if outlines else ())]
        rows[language] = [PERCENT.text(float(probability[place])), *map(VALUE.text, values)]
    return rows


def visible(token: str) -> str:
    """Show the spaces, line ends and invisible characters of a token.

    Example:
        >>> visible(" the")
        '␣the'
    """
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(shown.get(letter, letter if letter.isprintable() else f"U+{ord(letter):04X}") for letter in token)


def _of_neuron(rows: pd.DataFrame, neuron: tuple[int, int]) -> list[dict[Hashable, Any]]:
    """A neuron's rows of a table; none where the table is not about single neurons."""
    if not {"layer", "neuron"} <= set(rows.columns):
        return []
    return rows.loc[(rows["layer"] == neuron[0]) & (rows["neuron"] == neuron[1])].to_dict("records")


def _brief(profiles: Profiles, examples: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The strongest text of each language, around the strongest token."""
    for row in examples.loc[(examples["kind"] == "top") & (examples["rank"] == 0)].to_dict("records"):
        whole = whole_characters(profiles.pieces(row["text"]), list(row["values"]))
        if not whole:
            continue
        peak = max(range(len(whole)), key=lambda place: whole[place][1])
        before = "".join(piece for piece, _ in whole[:peak])
        after = "".join(piece for piece, _ in whole[peak + 1 :])
        yield {
            "language": row["language"],
            "value": VALUE.text(row["activation"]),
            "before": shortened(before, BEFORE, end=False),
            "peak": whole[peak][0],
            "after": shortened(after, AFTER, end=True),
        }


def shortened(text: str, letters: int, end: bool) -> str:
    """Keep the beginning (or the end) of a text, cut between words where there are words.

    Example:
        >>> shortened("one two three", 8, end=True), shortened("one two three", 8, end=False)
        ('one two…', '… three')
    """
    if len(text) <= letters:
        return text
    part = text[:letters] if end else text[-letters:]
    space = part.rfind(" ") if end else part.find(" ")
    words = part if space < 0 else part[:space] if end else part[space:]
    return f"{words}…" if end else f"…{words}"


def _texts(
    profiles: Profiles, examples: pd.DataFrame
) -> Iterator[tuple[str, list[tuple[str, list[tuple[str, Markup]]]]]]:
    """For each language and kind, the coloured texts, on one scale for the neuron."""
    values = [value for row in examples["values"] for value in row if np.isfinite(value)]
    scale = max(map(abs, values), default=1.0)
    for language, of_language in examples.groupby("language", sort=False):
        texts: dict[str, list[tuple[str, Markup]]] = {kind: [] for kind in KINDS}
        for row in of_language.to_dict("records"):
            text = coloured_text(profiles.pieces(row["text"]), list(row["values"]), scale)
            texts[row["kind"]].append((VALUE.text(row["activation"]), text))
        yield str(language), list(texts.items())


SHARES = (0.1, 0.5, 0.9)
TAIL = 0.001  # share of each language's tokens that is left out at either end of the shared axis
BINS, STEP, HEIGHT = 40, 4, 28  # bins of a strip; width of a bin and height of the strip, in pixels


@dataclass(frozen=True)
class Strips:
    """One neuron's distribution in each language, on one axis and one scale.

    Attributes:
        low: Left end of the axis.
        high: Right end.
        zero: Position of 0 on it, in pixels; None outside.
        paths: Language -> outline, as the ``d`` of an SVG path.
        quantiles: Language -> the quantiles at ``SHARES`` of the same quantity, interpolated in the histogram.
    """

    low: float
    high: float
    zero: float | None
    paths: dict[str, str]
    quantiles: dict[str, list[float]]


_NUMBERS: WeakKeyDictionary[ActivationStats, dict[str, tuple[Tensor, Tensor | None]]] = WeakKeyDictionary()


def numbers(stats: ActivationStats, site: str) -> tuple[Tensor, Tensor | None]:
    """Share of tokens with a value above zero, and mean value, of all neurons of a site ("language layer neuron").

    They are computed once for each statistics; the mean is None where it was not recorded (published counts).
    """
    by_site = _NUMBERS.setdefault(stats, {})
    if site not in by_site:
        at_site = stats.at(site)
        try:
            mean = at_site.mean()
        except StatisticsError:
            mean = None
        by_site[site] = at_site.probability(), mean
    return by_site[site]


def strips(stats: ActivationStats, neuron: tuple[int, int]) -> Strips | None:
    """Outline a neuron's distributions: of z at the sites pre and act, of the value elsewhere.

    Args:
        stats: Activation statistics.
        neuron: Layer and index.

    Returns:
        The outlines, all of one area; None where no histograms were recorded.

    Raises:
        StatisticsError: If the model has no such neuron.

    Example:
        >>> from langneurons.views.pages import strips
        >>> list(strips(stats, (0, 5)).paths)
        ['en', 'hi', 'zh']
    """
    stats.check_neuron(neuron)
    try:
        histograms = [stats.histogram(language, neuron) for language in stats.languages]
    except StatisticsError:
        return None
    curves = [_cumulative(edges.double().numpy(), counts.double().numpy()) for edges, counts in histograms]
    low = min(float(np.interp(TAIL, share, edges)) for edges, share in curves)
    high = max(float(np.interp(1 - TAIL, share, edges)) for edges, share in curves)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    axis = np.linspace(low, high, BINS + 1)
    heights = [np.diff(np.interp(axis, edges, share)) for edges, share in curves]
    highest = max(float(height.max()) for height in heights) or 1.0
    zero = STEP * BINS * (0 - low) / (high - low) if low <= 0 <= high else None
    paths, quantiles = {}, {}
    for language, (edges, share), height in zip(stats.languages, curves, heights, strict=True):
        tops = [HEIGHT - round(float(share_of_highest) * (HEIGHT - 1)) for share_of_highest in height / highest]
        paths[language] = f"M0 {HEIGHT}" + "".join(f"V{top}h{STEP}" for top in tops) + f"V{HEIGHT}z"
        quantiles[language] = np.interp(SHARES, share, edges).tolist()
    return Strips(low, high, zero, paths, quantiles)


def _cumulative(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of tokens below each edge, where there are any: strictly increasing, so that it can be inverted."""
    share = np.concatenate([[0.0], np.cumsum(counts) / max(counts.sum(), 1.0)])
    rising = np.flatnonzero(np.diff(share) > 0)
    places = [*rising, rising[-1] + 1] if len(rising) else [0, len(share) - 1]
    return edges[places], share[places]
