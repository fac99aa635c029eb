"""Figures of what neuron sets share: between languages, between language sets, between methods."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from langneurons.corpora import languages as language_sets
from langneurons.errors import NeuronSetError
from langneurons.identification import NeuronSet
from langneurons.identification.neurons import check_neurons, sets_by_name
from langneurons.identification.standing import NO_NEURONS
from langneurons.views.neuron_figures import provenance_of_neurons, standing
from langneurons.views.style import heatmap, label_room, styled

PUBLISHED_SETS = {name.lower(): group for name, group in vars(language_sets).items() if name.startswith("SET")}
JACCARD = "Jaccard: neurons in both / neurons in either."


def overlap(neurons: NeuronSet, other: NeuronSet | None = None, names: tuple[str, str] = ("", "")) -> go.Figure:
    """Draw the Jaccard overlap between languages, or between two neuron sets.

    Args:
        neurons: A neuron set (rows).
        other: Another one (columns); by default ``neurons`` itself.
        names: Names of the two sets on the axes.

    Returns:
        A heatmap of Jaccard similarities from 0 to 1; hovering shows the shared count, and how many of them are highest
        in which of the two languages, where the method says so.

    Example:
        >>> ln.plot.overlap(ln.LAPE(top=0.01).identify(stats)).data[0].zmax
        1
    """
    columns = neurons if other is None else other
    for each in (neurons, columns):
        check_neurons(each)
    neurons, columns = (each.select(sorted(each.languages)) for each in (neurons, columns))
    jaccard = neurons.jaccard(columns).to_numpy(dtype=float)
    pairs = list(itertools.product(neurons.members.values(), columns.members.values()))
    shared = np.array([len(np.intersect1d(*pair)) for pair in pairs]).reshape(jaccard.shape)
    figure = heatmap(
        jaccard,
        neurons.languages,
        columns.languages,
        (names[0] or "language", names[1] or "language"),
        customdata=shared,
        text=np.array(_where_highest(neurons, columns)).reshape(jaccard.shape),
        texttemplate="%{z:.2f}",
        hovertemplate="%{y} and %{x}<br>Jaccard %{z:.3f}<br>%{customdata} shared neurons%{text}<extra></extra>",
        colorbar={"title": "Jaccard"},
    )
    sizes, title = f"{len(neurons):,} neurons{standing(neurons)}", "Overlap between the languages' neurons"
    if other is not None:
        sizes = f"{len(neurons):,} and {len(columns):,} neurons"
        title = f"Overlap of {names[0] or 'one set'} and {names[1] or 'the other'}, language by language"
    chance = [_chance(len(first), len(second), neurons.shape) for first, second in pairs]
    random = f"Two random sets of these sizes would have a Jaccard similarity of {_from_to(chance)}." if chance else ""
    height = 140 + 46 * len(jaccard)
    return styled(figure, title, height, f"{sizes}; {JACCARD}", random, _provenance([neurons, columns]))


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
    if isinstance(neurons, NeuronSet):
        labels_of = {name: set(group) for name, group in (languages or PUBLISHED_SETS).items()}
        groups = {
            name: neurons.select([label for label in neurons.languages if label in labels])
            for name, labels in labels_of.items()
        }
    else:
        groups = sets_by_name(neurons, "")
    groups = {name: group for name, group in groups.items() if len(group.languages) > 1}
    if not groups:
        raise NeuronSetError(
            "A language set is compared where at least two of its languages have been labelled; none has."
        )
    labels = sorted({label for group in groups.values() for label in group.languages})
    counts = {name: _counts(group) for name, group in groups.items()}
    own, size, elsewhere = (
        pd.DataFrame({name: count[column] for name, count in counts.items()}).T.reindex(columns=labels)
        for column in ("own", "neurons", "elsewhere")
    )
    texts = own.map("{:.0f}<br>of ".format) + size.map("{:.0f}".format)
    figure = heatmap(
        (own / size).to_numpy(),
        groups,
        labels,
        ("language set", "language"),
        text=texts.where(size.notna(), "").to_numpy(),
        customdata=elsewhere.to_numpy(),
        texttemplate="%{text}",
        textfont={"size": 12 if len(labels) <= 10 else 10},
        hovertemplate="%{y}, %{x}<br>%{z:.0%} of its neurons: %{text}"
        + ("<br>%{customdata} are higher in another language" * any(group.highest for group in groups.values()))
        + "<extra></extra>",
        colorbar={"title": "share its own", "tickformat": ".0%"},
    )
    compared = "; ".join(f"{name}: {' '.join(group.languages)}" for name, group in groups.items())
    return styled(
        figure,
        "Neurons that no other language of the set has",
        150 + 54 * len(groups),
        "number of each language's neurons that belong to no other language of the set",
        f"Colour: their share. Language sets are compared over those of their languages that have labels ({compared}).",
        _provenance(groups.values()),
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
    neurons = sets_by_name(neurons, "")
    if len(neurons) < 2:
        raise NeuronSetError(f"Methods are compared where there are two or more; given {len(neurons)}.")
    names = list(neurons)
    cells = [[_per_language(a, neurons[a], b, neurons[b]) for b in names] for a in names]
    # The mean leaves out what is missing: the Jaccard of two empty sets.
    jaccard, chance = (
        np.array([[cell[name].mean() for cell in row] for row in cells]) for name in ("jaccard", "chance")
    )
    figure = heatmap(
        jaccard,
        names,
        names,
        customdata=[["<br>".join(cell["text"]) for cell in row] for row in cells],
        texttemplate="%{z:.2f}",
        hovertemplate="%{y} and %{x}<br>%{z:.3f}, the mean of<br>%{customdata}<extra></extra>",
        colorbar={"title": "Jaccard"},
    )
    apart = ~np.eye(len(names), dtype=bool)
    return styled(
        figure,
        "Do the methods choose the same neurons?",
        170 + 46 * len(names),
        f"mean over languages; {', '.join(f'{name} {len(neurons[name]):,}' for name in names)} neurons",
        f"{JACCARD} Random choices of the same sizes would have {_from_to(chance[apart])}.",
        _provenance(neurons.values()),
        left=label_room(names),
    )


def _counts(neurons: NeuronSet) -> pd.DataFrame:
    """Of each label: its neurons, those that no other label of this set has, and those higher in another language."""
    flat, labels = np.unique(np.concatenate([NO_NEURONS, *neurons.members.values()]), return_counts=True)
    elsewhere = neurons.highest_elsewhere()
    rows = {
        label: (len(members), len(np.intersect1d(members, flat[labels == 1])), len(elsewhere[label]))
        for label, members in neurons.members.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["neurons", "own", "elsewhere"])


def _where_highest(rows: NeuronSet, columns: NeuronSet) -> list[str]:
    """What hovering says of the neurons that two languages share: in which of the two how many are highest."""
    texts = []
    for (row, mine), (column, theirs) in itertools.product(rows.members.items(), columns.members.items()):
        shared = np.intersect1d(mine, theirs)
        counts = [
            f"{len(np.intersect1d(shared, neurons.highest[language])):,} highest in {language}"
            for language, neurons in {row: rows, column: columns}.items()
            if language in neurons.highest
        ]
        texts.append("".join(f"<br>{count}" for count in counts))
    return texts


def _provenance(sets: Iterable[NeuronSet]) -> str:
    return "; ".join(dict.fromkeys(map(provenance_of_neurons, sets)))


def _per_language(first: str, first_set: NeuronSet, second: str, second_set: NeuronSet) -> pd.DataFrame:
    """Jaccard, and that of random choices, in every language that both label."""
    both = [label for label in first_set.languages if label in second_set.languages]
    if not both:
        raise NeuronSetError(f"{first} and {second} have labelled no language in common: there is nothing to compare.")
    jaccard = np.diag(first_set.jaccard(second_set).loc[both, both])
    chance = [_chance(len(first_set.members[label]), len(second_set.members[label]), first_set.shape) for label in both]
    cells = zip(both, jaccard, chance, strict=True)
    texts = [f"{label} {shared:.3f} (random: {random:.3f})" for label, shared, random in cells]
    return pd.DataFrame({"jaccard": jaccard, "chance": chance, "text": texts})


def _chance(first: int, second: int, shape: tuple[int, int]) -> float:
    """Jaccard of two random sets that share as many neurons as expected."""
    shared = first * second / (shape[0] * shape[1])
    return shared / max(first + second - shared, 1)


def _from_to(values: Sequence[float] | Float[np.ndarray, " n"]) -> str:
    least, most = f"{min(values):.3f}", f"{max(values):.3f}"
    return f"about {least}" if least == most else f"{least} to {most}"
