"""One neuron on one page: what it does in each language, on which texts, what it writes, what is lost without it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from langneurons import storage
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import NeuronProfile, Profiles
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.errors import StaleArtefactError
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.neuron_numbers import BINS, HEIGHT, STEP, Strips, numbers, strips
from langneurons.views.style import interval, signed
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


@dataclass(frozen=True)
class NeuronPage:
    """A neuron's page; a notebook shows it, and ``save`` writes it to a file that opens anywhere.

    Attributes:
        neuron: Layer and index.
        title: What the page is about, in words.
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
        profiles: From ``ln.profile``.
        neuron: Layer and index, one of the profiles'.
        stats: Adds numbers and distributions a language.
        polysemanticity: Adds what the neuron carries of language and of a task.
        ablation: Adds what is lost without it.
        neurons: Method -> neuron set: adds whose neuron it is.

    Returns:
        The page.

    Raises:
        NeuronSetError: If the neuron was not profiled.
        StaleArtefactError: If what is given belongs to another model or site.

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
    content["texts"] = list(_texts(profiles, content["profile"]))
    title = f"Layer {neuron[0]}, neuron {neuron[1]} of {profiles.settings['model']}"
    return NeuronPage(neuron, title, rendered(content, brief=False))


def check_belongs(
    profiles: Profiles,
    stats: ActivationStats | None,
    polysemanticity: Polysemanticity | None,
    ablation: Ablation | None,
    neurons: Mapping[str, NeuronSet] | None,
) -> None:
    """Refuse to show side by side what belongs to different models or sites.

    Raises:
        StaleArtefactError: If something does.
    """
    for found in [stats.at(profiles.site)] if stats is not None and profiles.site in stats.sites else []:
        profiles.check(found)
    if stats is not None and profiles.site not in stats.sites:
        profiles.check(stats)
    for found in (neurons or {}).values():
        profiles.check(found)
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
    known, about = profiles[neuron], profiles.settings
    drawn = None if stats is None else strips(stats.at(profiles.site), neuron)
    return {
        "neuron": neuron,
        "anchor": ANCHOR.format(*neuron),
        "profile": known,
        "about": about,
        "signless": about["gated"] and about["site"] in ("pre", "act"),
        "labels": list(_labels(neurons or {}, neuron)),
        "languages": None if stats is None else _languages(stats, profiles.site, neuron, drawn),
        "strips": drawn,
        "strip": {"width": BINS * STEP, "height": HEIGHT},
        "quantity": "z" if about["site"] in ("pre", "act") else "values",
        "outputs": _outputs(known.outputs),
        "carried": _of_neuron(None if polysemanticity is None else polysemanticity.rows, neuron),
        "task": None if polysemanticity is None else polysemanticity.settings.get("task", "the task"),
        "lost": list(_lost(ablation, neuron)),
        "lost_of": None if ablation is None else _lost_of(ablation),
        "similar": _similar(profiles, known.similar),
        "brief": list(_brief(profiles, known.examples)),
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
    for method, found in neurons.items():
        flat = neuron[0] * found.shape[1] + neuron[1]
        if own := [label for label, members in found.members.items() if flat in members]:
            yield method, own


def _languages(
    stats: ActivationStats, site: str, neuron: tuple[int, int], drawn: Strips | None
) -> list[dict[str, Any]]:
    (layer, index), known = neuron, numbers(stats, site)
    rows = []
    for position, language in enumerate(stats.languages):
        active = f"{100 * known.probability[position, layer, index]:.1f}"
        mean = "" if known.mean is None else _number(float(known.mean[position, layer, index]))
        quantiles = [] if drawn is None else [_number(value) for value in drawn.quantiles[language]]
        rows.append({"language": language, "numbers": [active, mean, *quantiles]})
    return rows


def _outputs(outputs: pd.DataFrame) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """Promoted and suppressed tokens, by script, the script of the strongest first."""
    found = []
    for effect in ("promoted", "suppressed"):
        rows = outputs.loc[outputs["effect"] == effect]
        by_script: dict[str, list[dict[str, Any]]] = {}
        for row in rows.to_dict("records"):
            shown = {"token": visible(row["token"]), "change": signed(row["change"])}
            by_script.setdefault(row["script"], []).append(shown)
        if by_script:
            found.append((effect, list(by_script.items())))
    return found


def visible(token: str) -> str:
    """Show the spaces, line ends and invisible characters of a token.

    Example:
        >>> visible(" the")
        '␣the'
    """
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(shown.get(letter, letter if letter.isprintable() else f"U+{ord(letter):04X}") for letter in token)


def _of_neuron(rows: pd.DataFrame | None, neuron: tuple[int, int]) -> list[dict[str, Any]]:
    if rows is None:
        return []
    own = rows.loc[(rows["layer"] == neuron[0]) & (rows["neuron"] == neuron[1])]
    return [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]


def _lost(ablation: Ablation | None, neuron: tuple[int, int]) -> Iterator[dict[str, Any]]:
    if ablation is None or not {"layer", "neuron"} <= set(ablation.rows.columns):
        return
    for row in _of_neuron(ablation.rows, neuron):
        position = row.get("control_position", np.nan)
        yield {
            "label": row["label"],
            "language": row["language"],
            "effect": signed(ablation.scale * row["effect"], 3),
            "interval": interval(ablation.scale * row["low"], ablation.scale * row["high"], 3),
            "verdict": row["verdict"],
            "detectable": f"{ablation.scale * row['detectable']:.2g}",
            "controls": "" if np.isnan(position) else f"P{100 * position:.0f} of {row['control_draws']:.0f}",
        }


def _lost_of(ablation: Ablation) -> str:
    about = ablation.settings
    return f"{about['metric']}, {ablation.unit}; {about['patch']}; p adjusted over {len(ablation.rows):,} effects"


def _similar(profiles: Profiles, similar: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    names = {
        "activity": "are active alike (correlation over languages and documents)",
        "direction": "write alike (cosine)",
    }
    found = []
    for by, name in names.items():
        rows = similar.loc[similar["by"] == by].to_dict("records")
        linked = [
            {
                "anchor": ANCHOR.format(row["other_layer"], row["other_neuron"]),
                "known": (row["other_layer"], row["other_neuron"]) in profiles,
                "similarity": signed(row["similarity"]),
            }
            for row in rows
        ]
        if linked:
            found.append((name, linked))
    return found


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
            "value": _number(row["activation"]),
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
    kept = text[:letters] if end else text[-letters:]
    space = kept.rfind(" ") if end else kept.find(" ")
    whole = kept if space < 0 else kept[:space] if end else kept[space:]
    return f"{whole}…" if end else f"…{whole}"


def _texts(profiles: Profiles, known: NeuronProfile) -> Iterator[tuple[str, list[tuple[str, list[Markup]]]]]:
    """For each language and kind, the coloured texts, on one scale for the neuron."""
    values = [value for row in known.examples["values"] for value in row if np.isfinite(value)]
    scale = max(map(abs, values), default=1.0)
    for language, of_language in known.examples.groupby("language", sort=False):
        kinds = []
        for kind in KINDS:
            rows = of_language.loc[of_language["kind"] == kind].to_dict("records")
            shown = [
                (_number(row["activation"]), coloured_text(profiles.pieces(row["text"]), list(row["values"]), scale))
                for row in rows
            ]
            kinds.append((kind, shown))
        yield str(language), kinds


def _number(value: float) -> str:
    return "none" if not np.isfinite(value) else f"{value:.3g}".replace("-", "−")
