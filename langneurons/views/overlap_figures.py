"""Figures of what neuron sets share: between languages, between language sets, between methods."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from langneurons.corpora.languages import SET1, SET2, SET3, SET4, SET5, SET6, SET_XNLI
from langneurons.errors import NeuronSetError
from langneurons.identification.neurons import NeuronSet
from langneurons.views.neuron_figures import provenance_of_neurons
from langneurons.views.style import SHADES, label_room, styled

PUBLISHED_SETS = {
    "set1": SET1,
    "set2": SET2,
    "set3": SET3,
    "set4": SET4,
    "set5": SET5,
    "set6": SET6,
    "set_xnli": SET_XNLI,
}
JACCARD = "Jaccard: neurons in both / neurons in either."


def overlap(neurons: NeuronSet, other: NeuronSet | None = None, names: tuple[str, str] = ("", "")) -> go.Figure:
    """Draw the Jaccard overlap between languages, or between two neuron sets.

    Args:
        neurons: A neuron set (rows).
        other: Another one (columns); by default ``neurons`` itself.
        names: Names of the two sets on the axes.

    Returns:
        A heatmap of Jaccard similarities from 0 to 1; hovering shows the shared count.

    Example:
        >>> ln.plot.overlap(ln.LAPE(top=0.01).identify(stats)).data[0].zmax
        1
    """
    columns = neurons if other is None else other
    jaccard = neurons.jaccard(other).to_numpy(dtype=float)
    shared = np.array(
        [
            [len(np.intersect1d(mine, theirs)) for theirs in columns.members.values()]
            for mine in neurons.members.values()
        ]
    )
    figure = go.Figure(
        go.Heatmap(
            z=jaccard,
            x=list(columns.languages),
            y=list(neurons.languages),
            customdata=shared,
            colorscale=SHADES,
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} and %{x}<br>Jaccard %{z:.3f}<br>%{customdata} shared neurons<extra></extra>",
            colorbar={"title": "Jaccard"},
        )
    )
    figure.update_xaxes(title=names[1] or "language", showgrid=False, type="category")
    figure.update_yaxes(title=names[0] or "language", autorange="reversed", showgrid=False, type="category")
    sizes = f"{len(neurons):,} neurons" if other is None else f"{len(neurons):,} and {len(columns):,} neurons"
    title = (
        "Overlap between the languages' neurons"
        if other is None
        else f"Overlap of {names[0] or 'one set'} and {names[1] or 'the other'}, language by language"
    )
    made_from = dict.fromkeys(map(provenance_of_neurons, (neurons, columns)))
    return styled(
        figure,
        title,
        140 + 46 * len(jaccard),
        f"{sizes}; {JACCARD}",
        _random_text(neurons, columns),
        "; ".join(made_from),
    )


def sets(
    neurons: NeuronSet | Mapping[str, NeuronSet], languages: Mapping[str, Sequence[str]] | None = None
) -> go.Figure:
    """Draw which share of each language's neurons is its own within each of several language sets.

    A neuron that Hindi shares with Urdu alone is Hindi's own wherever Urdu is not looked at: how specific neurons are
    depends on the languages compared.

    Args:
        neurons: One neuron set, looked at within each language set; or a neuron set for each, identified among its
            languages alone (``ln.LAPE().identify(stats.select(...))``).
        languages: Language sets by name, where there is one neuron set; by default those of Mondal et al. 2025
            (SET1 to SET6, SET_XNLI). Languages without neurons in the set are left out, and so are language sets of
            which fewer than two are left.

    Returns:
        A heatmap, language sets down, languages across: the share of the language's neurons that no other language of
        the set has, and how many they are.

    Raises:
        NeuronSetError: If no language set has two languages to compare.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> list(ln.plot.sets(neurons, {"Europe": ["en", "fr"], "all": ["en", "hi", "zh"]}).data[0].y)
        ['all']
    """
    groups = _within(neurons, languages or PUBLISHED_SETS) if isinstance(neurons, NeuronSet) else dict(neurons)
    groups = {name: group for name, group in groups.items() if len(group.languages) > 1}
    if not groups:
        raise NeuronSetError(
            "A language set is compared where at least two of its languages have been labelled; none has."
        )
    labels = list(dict.fromkeys(label for group in groups.values() for label in group.languages))
    own = np.array([[_own(group, label) for label in labels] for group in groups.values()])
    size = np.array([[len(group.members.get(label, ())) for label in labels] for group in groups.values()])
    share = np.divide(own, size, out=np.full(size.shape, np.nan), where=size > 0)
    text = [
        [f"{a}<br>of {b}" if label in group.languages else "" for a, b, label in zip(*row, labels, strict=True)]
        for *row, group in zip(own, size, groups.values(), strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=labels,
            y=list(groups),
            text=text,
            texttemplate="%{text}",
            textfont={"size": 12 if len(labels) <= 10 else 10},
            colorscale=SHADES,
            zmin=0,
            zmax=1,
            hovertemplate="%{y}, %{x}<br>%{z:.0%} of its neurons: %{text}<extra></extra>",
            colorbar={"title": "share its own", "tickformat": ".0%"},
        )
    )
    figure.update_xaxes(title="language", showgrid=False, type="category")
    figure.update_yaxes(title="language set", autorange="reversed", showgrid=False, type="category")
    compared = "; ".join(f"{name}: {' '.join(group.languages)}" for name, group in groups.items())
    return styled(
        figure,
        "Neurons that no other language of the set has",
        150 + 54 * len(groups),
        "number of each language's neurons that belong to no other language of the set",
        f"Colour: their share. Language sets are compared over those of their languages that have labels ({compared}).",
        "; ".join(dict.fromkeys(map(provenance_of_neurons, groups.values()))),
        left=label_room(groups, title=True),
    )


def methods(neurons: Mapping[str, NeuronSet]) -> go.Figure:
    """Draw how far several methods choose the same neurons.

    Args:
        neurons: Method -> the neurons it chose, all of one model and site.

    Returns:
        A heatmap of Jaccard similarities, the mean over the languages that both methods labelled; hovering shows each
        language's, and what two random choices as large would share.

    Raises:
        NeuronSetError: If there are fewer than two methods, two share no language, or the sets do not fit each other.

    Example:
        >>> lape, often = ln.LAPE(top=0.01), ln.ActivationProbability(top=0.003)
        >>> figure = ln.plot.methods({"LAPE": lape.identify(stats), "often active": often.identify(stats)})
        >>> bool(figure.data[0].z[0][0] == 1)
        True
    """
    if len(neurons) < 2:
        raise NeuronSetError(f"Methods are compared where there are two or more; given {len(neurons)}.")
    names = list(neurons)
    cells = [[_per_language(a, neurons[a], b, neurons[b]) for b in names] for a in names]
    jaccard, chance = (
        np.array([[_mean([values[place] for values in cell.values()]) for cell in row] for row in cells])
        for place in (0, 1)
    )
    figure = go.Figure(
        go.Heatmap(
            z=jaccard,
            x=names,
            y=names,
            customdata=[[_listed(cell) for cell in row] for row in cells],
            colorscale=SHADES,
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} and %{x}<br>%{z:.3f}, the mean of<br>%{customdata}<extra></extra>",
            colorbar={"title": "Jaccard"},
        )
    )
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    apart = ~np.eye(len(names), dtype=bool)
    return styled(
        figure,
        "Do the methods choose the same neurons?",
        170 + 46 * len(names),
        f"mean over languages; {', '.join(f'{name} {len(neurons[name]):,}' for name in names)} neurons",
        f"{JACCARD} Random choices of the same sizes would have {_from_to(chance[apart])}.",
        "; ".join(dict.fromkeys(map(provenance_of_neurons, neurons.values()))),
        left=label_room(names),
    )


def _within(neurons: NeuronSet, languages: Mapping[str, Sequence[str]]) -> dict[str, NeuronSet]:
    """The neuron set with only each language set's labels, in the neuron set's order."""
    members = {
        name: {label: flat for label, flat in neurons.members.items() if label in group}
        for name, group in languages.items()
    }
    return {
        name: NeuronSet(flats, neurons.shape, neurons.site, neurons.model, neurons.method)
        for name, flats in members.items()
    }


def _own(neurons: NeuronSet, label: str) -> int:
    """Number of a label's neurons that no other label has."""
    others = [flat for name, flat in neurons.members.items() if name != label]
    return len(np.setdiff1d(neurons.members.get(label, np.empty(0)), np.concatenate([np.empty(0), *others])))


def _per_language(first: str, mine: NeuronSet, second: str, theirs: NeuronSet) -> dict[str, tuple[float, float]]:
    """Language -> Jaccard, and that of random choices, for the languages that both label."""
    both = [label for label in mine.languages if label in theirs.languages]
    if not both:
        raise NeuronSetError(f"{first} and {second} have labelled no language in common: there is nothing to compare.")
    jaccard = mine.jaccard(theirs)
    sizes = {label: (len(mine.members[label]), len(theirs.members[label])) for label in both}
    return {label: (float(jaccard.loc[label, label]), _chance(*sizes[label], mine.shape)) for label in both}


def _chance(first: int, second: int, shape: tuple[int, int]) -> float:
    """Jaccard of two random sets that share as many neurons as expected."""
    shared = first * second / (shape[0] * shape[1])
    return shared / max(first + second - shared, 1)


def _random_text(rows: NeuronSet, columns: NeuronSet) -> str:
    pairs = [
        _chance(len(mine), len(theirs), rows.shape)
        for mine in rows.members.values()
        for theirs in columns.members.values()
    ]
    return f"Two random sets of these sizes would have a Jaccard similarity of {_from_to(pairs)}." if pairs else ""


def _from_to(values: Sequence[float] | Float[np.ndarray, " n"]) -> str:
    least, most = f"{min(values):.3f}", f"{max(values):.3f}"
    return f"about {least}" if least == most else f"{least} to {most}"


def _mean(values: Sequence[float] | Float[np.ndarray, " n"]) -> float:
    """Mean without NaN, which stands for two empty sets; NaN where there is nothing else."""
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else np.nan


def _listed(cell: Mapping[str, tuple[float, float]]) -> str:
    return "<br>".join(f"{label} {jaccard:.3f} (random: {chance:.3f})" for label, (jaccard, chance) in cell.items())
