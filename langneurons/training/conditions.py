"""Conditions: which neurons a transfer experiment trains, and the neurons they are compared with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from langneurons.errors import TrainingError, unknown
from langneurons.identification.neurons import NeuronSet, united
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls

NONE, ALL = "none", "all"
CHOSEN = ("source", "target", "source+target")
# What is as large as which chosen set, layer by layer, and shares no neuron with any language.
CONTROL_OF = {"source": "random", "target": "random target", "source+target": "random source+target"}
CONDITIONS = (NONE, "source", "target", "source+target", "random", ALL)
POSSIBLE = (NONE, *CHOSEN, *CONTROL_OF.values(), ALL)


@dataclass(frozen=True)
class Condition:
    """One choice of neurons to train.

    Attributes:
        name: "none", "source", "target", "source+target", "random" (drawn like "source"), "random target",
            "random source+target" or "all".
        target: The target language whose neurons are in play; "" where the same training serves all of them.
        seed: The training seed that it is for, None where every seed trains the same neurons.
        draw: Which draw of random neurons; 0 where nothing is drawn.
        neurons: What is trained beside attention and head; None is nothing.
    """

    name: str
    target: str
    seed: int | None
    draw: int
    neurons: NeuronSet | None


def conditions(
    neurons: NeuronSet,
    source: str,
    targets: Iterable[str],
    names: Iterable[str] = CONDITIONS,
    seeds: Iterable[int] = range(6),
    draws: int = 1,
    stats: ActivationStats | None = None,
) -> list[Condition]:
    """Choose the neurons of every condition of a transfer experiment.

    Random neurons are as many in every layer as the set they stand for, and none of them has any label in ``neurons``.
    Every training seed draws its own, so that the difference to them is a difference to random neurons, not to one
    draw of them.

    Args:
        neurons: With a label for the source, and for every target whose neurons are trained.
        source: The language of the training data.
        targets: The languages transferred to.
        names: Which conditions.
        seeds: The training seeds.
        draws: Draws of random neurons a seed.
        stats: Statistics of the same model: random neurons then also match, decile by decile, the mean |activation| x
            norm of the output weights in the source language, in which all training happens.

    Returns:
        The conditions, in the order of ``names``; those of target neurons once a target.

    Raises:
        TrainingError: If a name is unknown, nothing is asked for, or a language has no neurons.
        LanguageError: If the neurons have no such label.
        NeuronSetError: If a layer has too few neurons left to draw from: nothing is padded.

    Example:
        >>> from langneurons.training.conditions import conditions
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> chosen = conditions(neurons, "en", ["hi", "zh"], ["none", "source", "target", "all"])
        >>> [(one.name, one.target) for one in chosen]
        [('none', ''), ('source', ''), ('target', 'hi'), ('target', 'zh'), ('all', '')]
        >>> len(chosen[-1].neurons)
        12288
    """
    asked, languages, trained = list(dict.fromkeys(names)), list(dict.fromkeys(targets)), list(seeds)
    _check(asked, source, languages, trained, draws)
    found: list[Condition] = []
    for name in asked:
        if name in CONTROL_OF.values():
            found += _random(name, neurons, source, languages, trained, draws, stats)
        else:
            places = languages if needs_target(name) else [""]
            found += [Condition(name, place, None, 0, _trained(name, neurons, source, place)) for place in places]
    return found


def needs_target(name: str) -> bool:
    """Whether a condition is another one for every target language."""
    return "target" in name


def _random(
    name: str,
    neurons: NeuronSet,
    source: str,
    targets: Sequence[str],
    seeds: Sequence[int],
    draws: int,
    stats: ActivationStats | None,
) -> list[Condition]:
    like = next(chosen for chosen, control in CONTROL_OF.items() if control == name)
    found = []
    for target in targets if needs_target(name) else [""]:
        # Under the source's label: that is the language in which magnitudes are matched.
        original = _relabelled(_chosen(like, neurons, source, target), source)
        for seed in seeds:
            for draw in range(draws):
                drawn = original.matched_control(Controls(stats=stats, seed=seed), draw, exclude=neurons)
                found.append(Condition(name, target, seed, draw, _relabelled(drawn, name)))
    return found


def _trained(name: str, neurons: NeuronSet, source: str, target: str) -> NeuronSet | None:
    if name == NONE:
        return None
    if name == ALL:
        layers, width = neurons.shape
        return replace(neurons, members={ALL: np.arange(layers * width)}, scores={}, method="all neurons")
    return _chosen(name, neurons, source, target)


def _chosen(name: str, neurons: NeuronSet, source: str, target: str) -> NeuronSet:
    """The neurons of one language or of two, under one label."""
    languages = {"source": [source], "target": [target], "source+target": [source, target]}[name]
    for language in languages:
        if not len(neurons[language]):
            raise TrainingError(
                f"{language!r} has no neurons, so that the condition {name!r} would train none: identify more of them, "
                "or leave the condition away."
            )
    return united([neurons.select(languages)], "+".join(languages))


def _relabelled(neurons: NeuronSet, label: str) -> NeuronSet:
    (flat,) = neurons.members.values()
    return replace(neurons, members={label: flat})


def _check(names: Sequence[str], source: str, targets: Sequence[str], seeds: Sequence[int], draws: int) -> None:
    for name in names:
        if name not in POSSIBLE:
            raise TrainingError(unknown("condition", name, POSSIBLE))
    needed = any(map(needs_target, names))
    if not names or (needed and not targets) or not seeds:
        what = "condition" if not names else "training seed" if not seeds else "target language"
        raise TrainingError(f"A transfer experiment needs at least one {what}, none was given.")
    if needed and source in targets:
        raise TrainingError(f"{source!r} is both the source and a target: transfer is to another language.")
    if draws < 1:
        raise TrainingError(f"A random condition needs at least one draw a seed, given {draws}.")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise TrainingError(f"Training seeds are different numbers from 0 on, given {', '.join(map(str, seeds))}.")
