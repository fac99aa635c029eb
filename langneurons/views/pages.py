"""One neuron on one page: its activity in each language, its texts, its output, and the effect of ablating it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from langneurons import storage
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import Profiles
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.errors import StaleArtefactError
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.storage.presenting import MISSING, Column
from langneurons.views.neuron_numbers import BINS, HEIGHT, STEP, Strips, numbers, strips
from langneurons.views.tokens import coloured_text, whole_characters

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("langneurons.views"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
KINDS = ("top", "median", "random")
BEFORE, AFTER = 36, 24  # characters shown around the strongest token, in brief
ANCHOR = "L{}N{}"
VALUE, CHANGE = Column(), Column(digits=2, signed=True)
PERCENT, COARSE = Column(scale=100), Column(digits=2)


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
        return f"<style>{own_file('neuron_page.css')}</style>{self.body}"

    def __repr__(self) -> str:
        return f"NeuronPage: {self.title}"

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file.

        Returns:
            The path.
        """
        style = Markup(own_file("base.css") + own_file("neuron_page.css"))  # noqa: S704 (our own files)
        html = TEMPLATES.get_template("single_page.html.jinja").render(title=self.title, body=self.body, style=style)
        storage.write_text(Path(path), html)
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
    check_belongs(profiles, stats, polysemanticity, ablation, neurons)
    content = page_content(profiles, neuron, stats, polysemanticity, ablation, neurons)
    content["texts"] = list(_texts(profiles, content["profile"].examples))
    title = f"Layer {neuron[0]}, neuron {neuron[1]} of {profiles.settings['model']}"
    return NeuronPage(neuron, title, rendered(content, brief=False))


def check_belongs(
    profiles: Profiles,
    stats: ActivationStats | None,
    polysemanticity: Polysemanticity | None,
    ablation: Ablation | None,
    neurons: Mapping[str, NeuronSet] | None,
) -> None:
    """Refuse to show results of different models or sites side by side.

    Raises:
        StaleArtefactError: If they belong to different ones.
    """
    if stats is not None:
        profiles.check(stats.at(profiles.site) if profiles.site in stats.sites else stats)
    for neuron_set in (neurons or {}).values():
        profiles.check(neuron_set)
    for name, result in (("polysemanticity", polysemanticity), ("ablation", ablation)):
        site = None if result is None else result.settings.get("site")
        if site not in (None, profiles.site):
            raise StaleArtefactError(f"The profiles are of site {profiles.site!r}, the {name} of {site!r}.")


def page_content(
    profiles: Profiles,
    neuron: tuple[int, int],
    stats: ActivationStats | None,
    polysemanticity: Polysemanticity | None,
    ablation: Ablation | None,
    neurons: Mapping[str, NeuronSet] | None,
) -> dict[str, Any]:
    """Collect what the template shows of a neuron, texts in brief."""
    profile, settings = profiles[neuron], profiles.settings
    recorded = stats is not None and profiles.site in stats.sites
    outlines = strips(stats.at(profiles.site), neuron) if stats is not None and recorded else None
    return {
        "neuron": neuron,
        "anchor": ANCHOR.format(*neuron),
        "profile": profile,
        "about": settings,
        "signless": settings["gated"] and settings["site"] in ("pre", "act"),
        "labels": list(_labels(neurons or {}, neuron)),
        "languages": _languages(stats, profiles.site, neuron, outlines) if stats is not None and recorded else None,
        "strips": outlines,
        "axis": "" if outlines is None else f"from {VALUE.text(outlines.low)} to {VALUE.text(outlines.high)}",
        "strip": {"width": BINS * STEP, "height": HEIGHT},
        "quantity": "z" if settings["site"] in ("pre", "act") else "values",
        "outputs": _outputs(profile.outputs),
        "carried": [] if polysemanticity is None else list(_carried(polysemanticity, neuron)),
        "ablated": [] if ablation is None else list(_ablated(ablation, neuron)),
        "ablation": "" if ablation is None else _ablation_text(ablation),
        "similar": _similar(profiles, profile.similar),
        "brief": list(_brief(profiles, profile.examples)),
        "texts": [],
    }


def rendered(content: Mapping[str, Any], brief: bool) -> Markup:
    """Write the page; in brief, only the strongest text of each language."""
    return Markup(TEMPLATES.get_template("neuron_page.html.jinja").render(**content, in_brief=brief))  # noqa: S704


def own_file(name: str) -> str:
    """Read a style sheet or script of ours, as it is."""
    loader = TEMPLATES.loader
    assert loader is not None
    return loader.get_source(TEMPLATES, name)[0]


def _labels(neurons: Mapping[str, NeuronSet], neuron: tuple[int, int]) -> Iterator[tuple[str, list[str]]]:
    for method, neuron_set in neurons.items():
        flat = neuron[0] * neuron_set.shape[1] + neuron[1]
        if own := [label for label, members in neuron_set.members.items() if flat in members]:
            yield method, own


def _languages(
    stats: ActivationStats, site: str, neuron: tuple[int, int], outlines: Strips | None
) -> list[dict[str, Any]]:
    activity, rows = numbers(stats, site), []
    for position, language in enumerate(stats.languages):
        place = (position, *neuron)
        mean = None if activity.mean is None else float(activity.mean[place])
        quantiles = [] if outlines is None else outlines.quantiles[language]
        texts = [PERCENT.text(float(activity.probability[place])), *map(VALUE.text, [mean, *quantiles])]
        rows.append({"language": language, "numbers": texts})
    return rows


def _outputs(outputs: pd.DataFrame) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """Promoted and suppressed tokens, by script, the script of the strongest first."""
    groups = []
    for effect in ("promoted", "suppressed"):
        rows = outputs.loc[outputs["effect"] == effect]
        by_script: dict[str, list[dict[str, Any]]] = {}
        for row in rows.to_dict("records"):
            token = {"token": visible(row["token"]), "change": CHANGE.text(row["change"])}
            by_script.setdefault(row["script"], []).append(token)
        if by_script:
            groups.append((effect, list(by_script.items())))
    return groups


def visible(token: str) -> str:
    """Show the spaces, line ends and invisible characters of a token.

    Example:
        >>> visible(" the")
        '␣the'
    """
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(shown.get(letter, letter if letter.isprintable() else f"U+{ord(letter):04X}") for letter in token)


def _carried(polysemanticity: Polysemanticity, neuron: tuple[int, int]) -> Iterator[dict[str, Any]]:
    task = polysemanticity.settings.get("task", "the task")
    for row in _of_neuron(polysemanticity.rows, neuron):
        shares = {name: PERCENT.text(row[f"{name}_share"]) for name in ("language", "task", "interaction")}
        yield {"label": row["language"], "verdict": row["verdict"], "name": task, **shares}


def _of_neuron(rows: pd.DataFrame, neuron: tuple[int, int]) -> list[dict[str, Any]]:
    own = rows.loc[(rows["layer"] == neuron[0]) & (rows["neuron"] == neuron[1])]
    return [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]


def _ablated(ablation: Ablation, neuron: tuple[int, int]) -> Iterator[dict[str, Any]]:
    if not {"layer", "neuron"} <= set(ablation.rows.columns):
        return
    effect, detectable = replace(CHANGE, scale=ablation.scale, digits=3), replace(COARSE, scale=ablation.scale)
    for row in _of_neuron(ablation.rows, neuron):
        position = row.get("control_position", np.nan)
        yield {
            "language": row["language"],
            "effect": effect.text(row["effect"], row["low"], row["high"]),
            "verdict": row["verdict"],
            "detectable": detectable.text(row["detectable"]),
            "controls": MISSING if np.isnan(position) else f"P{100 * position:.0f} of {row['control_draws']:.0f}",
        }


def _ablation_text(ablation: Ablation) -> str:
    settings = ablation.settings
    return f"{settings['metric']}, {ablation.unit}; {settings['patch']}; p adjusted over {len(ablation.rows):,} effects"


def _similar(profiles: Profiles, similar: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    names = {
        "activity": "are active on the same texts (correlation over languages and documents)",
        "direction": "write in the same direction (cosine)",
    }
    groups = []
    for by, name in names.items():
        neurons = [
            {
                "anchor": ANCHOR.format(row["other_layer"], row["other_neuron"]),
                "has_page": (row["other_layer"], row["other_neuron"]) in profiles,
                "similarity": CHANGE.text(row["similarity"]),
            }
            for row in similar.loc[similar["by"] == by].to_dict("records")
        ]
        if neurons:
            groups.append((name, neurons))
    return groups


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


def _texts(profiles: Profiles, examples: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, list[Markup]]]]]:
    """For each language and kind, the coloured texts, on one scale for the neuron."""
    values = [value for row in examples["values"] for value in row if np.isfinite(value)]
    scale = max(map(abs, values), default=1.0)
    for language, of_language in examples.groupby("language", sort=False):
        kinds = []
        for kind in KINDS:
            rows = of_language.loc[of_language["kind"] == kind].to_dict("records")
            texts = [
                (VALUE.text(row["activation"]), coloured_text(profiles.pieces(row["text"]), list(row["values"]), scale))
                for row in rows
            ]
            kinds.append((kind, texts))
        yield str(language), kinds
