"""What a folder holds, found by the schemas of its files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import langneurons as ln
from langneurons import storage
from langneurons.analysis.validity.table import ValidityTable
from langneurons.errors import StorageError

DEEPEST = 4  # folders below the one given
ALONE = ("stats", "validity", "profiles")  # of which a report shows one
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "langneurons/activation-statistics/1": ("stats", lambda file: ln.ActivationStats.load(file.parent)),
    "langneurons/evaluation/1": ("evaluation", lambda file: ln.evaluation.Evaluation.load(file.parent)),
    "langneurons/transfer/1": ("transfer", lambda file: ln.training.Transfer.load(file.parent)),
    "langneurons/ablation/1": ("ablation", lambda file: ln.analysis.Ablation.load(file.parent)),
    "langneurons/polysemanticity/1": ("polysemanticity", lambda file: ln.analysis.Polysemanticity.load(file.parent)),
    "langneurons/validity-table/1": ("validity", lambda file: ValidityTable.load(file.parent)),
    "langneurons/profiles/1": ("profiles", lambda file: ln.analysis.Profiles.load(file.parent)),
}
NEURONS, EFFECTS = "langneurons/neuron-set/1", "langneurons/effect-table/1"


def read_folder(folder: Path, question: str) -> tuple[ln.Findings, list[str]]:
    """Read every result in a folder and the folders in it.

    Several of one kind are told apart by their folders; of statistics, profiles and validity tables, of which a report
    shows one, the one found first from above is taken.

    Args:
        folder: Such as ``record``, ``identify`` and the commands after them were given as ``--out``.
        question: The report's title.

    Returns:
        What was found, and a sentence for each result that was left out.

    Raises:
        StorageError: If there is no such folder, or no result in it.
        CorruptArtefactError: If a result is truncated or changed.
    """
    if not folder.is_dir():
        raise StorageError(f"Cannot read {folder}: there is no such folder.")
    found: dict[str, Any] = {}
    neurons: dict[str, ln.NeuronSet] = {}
    left_out = []
    for file, schema in _artefacts(folder):
        if schema == NEURONS:
            name = file.stem.removeprefix("neurons.")
            if name in neurons:
                left_out.append(f"{file} is left out: there is a set {name!r} already.")
            else:
                neurons[name] = ln.NeuronSet.load(file)
            continue
        kind, result = _read(file, schema)
        if kind in found and kind in ALONE:
            left_out.append(f"{file} is left out: there is another such result above or before it.")
        elif kind in ALONE:
            found[kind] = result
        elif kind:
            found.setdefault(kind, {})[file.parent.relative_to(folder).as_posix()] = result
    if not found and not neurons:
        raise StorageError(
            f"{folder} holds no result: give a folder that record, identify, perplexity, evaluate, transfer, ablate, "
            "probe, compare or profile wrote."
        )
    single = {kind: next(iter(one.values())) for kind, one in found.items() if kind not in ALONE and len(one) == 1}
    return ln.Findings(question, neurons=neurons, **found | single), left_out


def _read(file: Path, schema: str) -> tuple[str, Any]:
    if schema == EFFECTS:
        table = ln.effects.EffectTable.load(file.parent)
        return "matrix" if table.keys == ["patched", "measured"] else "sweep" if "kind" in table.keys else "", table
    if schema not in READERS:
        return "", None
    kind, read = READERS[schema]
    return kind, read(file)


def _artefacts(folder: Path) -> Iterator[tuple[Path, str]]:
    """The JSON files of ours, those nearest to the folder first."""
    files = [file for file in folder.rglob("*.json") if len(file.relative_to(folder).parts) <= DEEPEST]
    for file in sorted(files, key=lambda one: (len(one.parts), one)):
        if schema := storage.schema_of(file):
            yield file, schema
