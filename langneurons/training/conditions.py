"""Conditions: which neurons a transfer experiment trains, and the neurons they are compared with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from langneurons.corpora.languages import spelled
from langneurons.errors import TrainingError, unknown
from langneurons.identification.controls import reported_balance
from langneurons.identification.neurons import NeuronSet, united
from langneurons.settings import CONDITIONS, Controls, Experiment, controls_of, literal_choices

NONE, ALL, LORA, FULL = "none", "all", "lora", "full"
SHARED, EXCLUSIVE = "shared", "exclusive"
WHOLE = (ALL, LORA, FULL)  # train all neurons
# What is as large as which set of neurons, layer by layer, and shares no neuron with any language.
CONTROL_OF = {"source": "random"} | {name: f"random {name}" for name in ("target", "source+target", SHARED, EXCLUSIVE)}
POSSIBLE = tuple(literal_choices(Experiment.model_fields["conditions"].annotation))


@dataclass(frozen=True)
class Condition:
    """One choice of neurons to train.

    Attributes:
        name: Name of the condition: "none", "source", "shared", "exclusive", "target", "source+target", "all", "lora",
            "full", "random" (drawn like "source"), or "random" and the name of another set that is drawn like.
        target: The target language whose neurons are in play; "" where the same training serves all of them.
        seed: The training seed that it is for; None where every seed trains the same neurons.
        draw: Index of the draw of random neurons; 0 where nothing is drawn.
        neurons: The neurons that are trained beside attention and head; None trains no neuron. With "lora" and "full"
            whole matrices are trained.
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
    controls: int | Controls = 1,
) -> list[Condition]:
    """Choose the neurons of every condition of a transfer experiment.

    Random neurons are as many in every layer as the set they stand for, and none of them has any label in ``neurons``.
    Every training seed draws its own, so that the difference to them is a difference to random neurons, not to one
    draw of them.

    Args:
        neurons: Neurons with a label for the source, and for every target whose neurons are trained.
        source: The language of the training data.
        targets: The languages transferred to.
        names: Names of the conditions.
        seeds: The training seeds; they decide which random neurons are drawn, not ``Controls.seed``.
        controls: Draws of random neurons per seed. With ``stats`` random neurons also match, decile by decile, the
            mean |activation| x norm of the output weights in the source language, in which all training happens.

    Returns:
        The conditions, in the order of ``names``; those of target neurons once per target.

    Raises:
        TrainingError: If a name is unknown, nothing is asked for, or a language has no neurons.
        LanguageError: If the neurons have no such label.
        NeuronSetError: If a layer has too few neurons left to draw from: nothing is padded.

    Example:
        >>> from langneurons.training.conditions import conditions
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> selections = conditions(neurons, "en", ["hi", "zh"], ["none", "source", "target", "all"])
        >>> [(condition.name, condition.target) for condition in selections]
        [('none', ''), ('source', ''), ('target', 'hi'), ('target', 'zh'), ('all', '')]
        >>> len(selections[-1].neurons)
        12288
    """
    names, targets, seeds = list(dict.fromkeys(names)), list(dict.fromkeys(targets)), list(seeds)
    controls = controls_of(controls)
    _check(names, source, targets, seeds, controls.draws)
    selections: list[Condition] = []
    for name in names:
        for target in targets if needs_target(name) else [""]:
            if name in CONTROL_OF.values():
                selections += _random(name, neurons, source, target, seeds, controls)
            else:
                selections.append(Condition(name, target, None, 0, _trained(name, neurons, source, target)))
    return selections


def report_random(
    selections: Iterable[Condition], neurons: NeuronSet, source: str, controls: int | Controls
) -> dict[str, object]:
    """What a result's settings keep of how random neurons match the sets they stand for: nothing where none are drawn.

    Args:
        selections: The conditions that ``conditions`` chose.
        neurons: The neurons that it chose them from.
        source: The language of the training data.
        controls: How random neurons are drawn.

    Returns:
        ``balance``, with one row per random condition, and a sentence for captions.
    """
    draws: dict[tuple[str, str], list[NeuronSet]] = {}
    for condition in selections:
        if condition.name in CONTROL_OF.values() and condition.neurons is not None:
            members = _relabelled(condition.neurons, source)
            draws.setdefault((condition.name, condition.target), []).append(members)
    if not draws:
        return {}
    controls = controls_of(controls).model_copy(update={"draws": max(map(len, draws.values()))})
    tables = [
        _original(name, neurons, source, target)
        .balance(draws_of_set, controls, exclude=neurons)
        .assign(language=f"{name} {target}".rstrip())
        for (name, target), draws_of_set in draws.items()
    ]
    return {"balance": reported_balance(pd.concat(tables, ignore_index=True), controls)}


def needs_target(name: str) -> bool:
    """Whether a condition is another one for every target language."""
    return "target" in name


def _random(
    name: str, neurons: NeuronSet, source: str, target: str, seeds: Sequence[int], controls: Controls
) -> Iterator[Condition]:
    original = _original(name, neurons, source, target)
    for seed in seeds:
        seeded = controls.model_copy(update={"seed": seed})
        for draw in range(controls.draws):
            control = original.matched_control(seeded, draw, exclude=neurons)
            yield Condition(name, target, seed, draw, _relabelled(control, name))


def _original(name: str, neurons: NeuronSet, source: str, target: str) -> NeuronSet:
    """The neurons that random ones stand for, under the source's label: in that language they are matched."""
    like = next(selection for selection, control in CONTROL_OF.items() if control == name)
    return _relabelled(_selected(like, neurons, source, target), source)


def _trained(name: str, neurons: NeuronSet, source: str, target: str) -> NeuronSet | None:
    if name == NONE:
        return None
    if name in WHOLE:
        layers, width = neurons.shape
        return replace(neurons, members={ALL: np.arange(layers * width)}, scores={}, method="all neurons")
    return _selected(name, neurons, source, target)


def _selected(name: str, neurons: NeuronSet, source: str, target: str) -> NeuronSet:
    """The neurons of one language or of two, or a part of the source's, under one label."""
    if name in (SHARED, EXCLUSIVE):
        return _part_of_source(name, neurons, source)
    languages = {"source": [source], "target": [target], "source+target": [source, target]}[name]
    for language in languages:
        if not len(neurons[language]):
            raise TrainingError(
                f"{language!r} has no neurons, so that the condition {name!r} would train none: identify more of them, "
                "or leave the condition away."
            )
    return united([neurons.select(languages)], "+".join(languages))


def _part_of_source(name: str, neurons: NeuronSet, source: str) -> NeuronSet:
    """The source's neurons that are above the method's bar in other languages too, or those that are in none."""
    own = neurons[source]
    part = own.shared() if name == SHARED else own.exclusive()
    if not len(part):
        which = "shares with another language" if name == SHARED else "has alone"
        raise TrainingError(
            f"{source!r} has no neuron that it {which}, so that the condition {name!r} would train none: leave it away."
        )
    return _relabelled(part, f"{source} {name}")


def _relabelled(neurons: NeuronSet, label: str) -> NeuronSet:
    (flat,) = neurons.members.values()
    return replace(neurons, members={label: flat}, scores={})


def _check(names: Sequence[str], source: str, targets: Sequence[str], seeds: Sequence[int], draws: int) -> None:
    for name in names:
        if name not in POSSIBLE:
            raise TrainingError(unknown("condition", name, POSSIBLE))
    needed = any(map(needs_target, names))
    if not names or (needed and not targets) or not seeds:
        what = "condition" if not names else "training seed" if not seeds else "target language"
        raise TrainingError(f"A transfer experiment needs at least one {what}, none was given.")
    if needed and spelled(source, targets):
        raise TrainingError(f"{source!r} is both the source and a target: transfer is to another language.")
    if draws < 1 and set(names) & set(CONTROL_OF.values()):
        raise TrainingError(f"A random condition needs at least one draw per seed, given {draws}.")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise TrainingError(f"Training seeds are different numbers from 0 on, given {', '.join(map(str, seeds))}.")
