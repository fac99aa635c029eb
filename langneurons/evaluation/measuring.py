"""Measuring one text under many patches: each condition once, kept on disk, so that an interrupted grid goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from langneurons import storage
from langneurons.errors import PatchError, StorageError
from langneurons.evaluation.effect_table import EffectTable
from langneurons.evaluation.effects import effect
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.models import view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch

Conditions = Mapping[tuple, Sequence[Patch]]


def measure(
    model: torch.nn.Module,
    text: HeldoutText,
    conditions: Conditions,
    out: str | Path | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[tuple, pd.DataFrame]:
    """Score a text under every condition.

    Args:
        model: From ``load_model``; patches that are already written stay written, but then nothing can be kept.
        text: What to score.
        conditions: Name -> the patches written together; none for the unpatched model. All are checked before the first
            is measured, and equal ones are measured once.
        out: Folder that keeps what was measured; the same call goes on there.
        batch_size: Blocks a forward.
        progress: Show a progress bar on standard error.

    Returns:
        Name -> language-model rows: language, item, cluster, nll, tokens, bytes.

    Raises:
        PatchError: If a patch does not fit the model, or is of generated positions only, of which a text has none; or
            if something else is attached to the model while ``out`` is given.
        SiteMismatchError: If neurons or values belong to another model.
        StorageError: If the folder cannot be written.
    """
    seen = view(model)
    if out is not None and seen.hooked:
        raise PatchError(
            f"Something is attached to {seen.name!r}, such as a patch, so what is measured cannot be kept for the "
            "model as it is: leave the block first, or leave out= away."
        )
    for patches in conditions.values():
        for patch in patches:
            check_fits(patch, seen)
            check_reads_text(patch)
    by_key: dict[str, pd.DataFrame] = {}
    plain = (seen.fingerprint, seen.backend, str(seen.dtype), text.fingerprint)
    keys = {
        name: storage.fingerprint(*plain, *(patch.fingerprint for patch in patches))
        for name, patches in conditions.items()
    }
    for name in tqdm(conditions, unit="condition", disable=not progress):
        if (key := keys[name]) in by_key:
            continue
        path = None if out is None else Path(out) / "rows" / f"{key}.parquet"
        if path is not None and (kept := _kept(path)) is not None:
            by_key[key] = kept
            continue
        with patching(seen, conditions[name]):
            by_key[key] = text.score(model, batch_size=batch_size)
        if path is not None:
            storage.write_table(path, by_key[key])
    return {name: by_key[keys[name]] for name in conditions}


def check_reads_text(patch: Patch) -> None:
    """Refuse a patch that would do nothing while a text is scored.

    Raises:
        PatchError: If it is of generated positions only.
    """
    if patch.positions == "generated":
        raise PatchError(
            "While a text is scored nothing is generated, so a patch with positions='generated' would do nothing: "
            "possible are 'all' and 'prompt'."
        )


def loss_effects(
    model: torch.nn.Module,
    text: HeldoutText,
    scored: Mapping[tuple, Mapping[str, pd.DataFrame]],
    baseline: Mapping[str, pd.DataFrame],
    keys: Sequence[str],
    settings: Mapping[str, Any],
    **options: Any,
) -> EffectTable:
    """Compare every condition with the unpatched model in every language, as one family.

    Args:
        model: From ``load_model``.
        text: What was scored.
        scored: Condition -> language -> rows.
        baseline: Language -> rows of the unpatched model.
        keys: Names of a condition's parts, and of the measured language.
        settings: What to store beside the options, the text and the model.
        options: Of ``effect``.

    Returns:
        Effects: change of the measured language's loss relative to its own baseline.
    """
    effects = {
        (*name, language): effect(
            rows[language], baseline[language], value="nll", per="baseline", lower_is_better=True, **options
        )
        for name, rows in scored.items()
        for language in text.languages
    }
    seen = view(model)
    family = f"model {seen.name}, held-out text, nll relative to the unpatched model: {len(effects)} effects"
    about = {"tokens": text.tokens, "text": text.fingerprint, "model": seen.fingerprint}
    return EffectTable.of(effects, keys, family, {**options, **settings, **about})


def split_by_language(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each language's rows, by language."""
    return {str(language): part for language, part in rows.groupby("language", sort=False)}


def _kept(path: Path) -> pd.DataFrame | None:
    try:
        return storage.read_table(path)
    except StorageError:
        return None  # not there, or not whole: it is measured, and written over
