"""Statistics from activations that a user already holds: TransformerLens ActivationCache objects with their tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langneurons.errors import CorpusError, HookSiteError, StatisticsError, unknown
from langneurons.models import ModelView, view
from langneurons.recording.accumulation import FOLDS
from langneurons.recording.records import LanguageRecord
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import Calibration, LanguageSums, observing_caches, recorded_model

Caches = Sequence[tuple[Tensor, Any]]


@torch.no_grad()
def record_caches(
    model: torch.nn.Module,
    caches: Mapping[str, Caches],
    sites: Sequence[str] = ("act",),
    like: ActivationStats | None = None,
) -> ActivationStats:
    """Make activation statistics of TransformerLens caches; ``record`` is this computation, streamed.

    Args:
        model: The model that made the caches.
        caches: Per language, pairs of tokens ("batch position") and the ActivationCache that ``run_with_cache`` gave
            for them. Each row of tokens counts as one document; special tokens and position 0 are not counted.
        sites: Among "pre", "act", "post", "head", "resid_post", and names given to ``add_dictionary``.
        like: Statistics whose histogram edges to reuse for the languages it has.

    Returns:
        The statistics.

    Raises:
        CorpusError: If a language has no counted token.
        HookSiteError: If a cache lacks a site's hook.
        StatisticsError: If tokens and cache have different shapes.

    Example:
        >>> tokens = model.to_tokens("The boy drinks water.")
        >>> _, cache = model.run_with_cache(tokens)
        >>> ln.record_caches(model, {"en": [(tokens, cache)]}).languages
        ('en',)
    """
    seen, sites = view(model), tuple(sites)
    for site in sites:
        if site not in seen.sites:
            raise HookSiteError(unknown("site", site, seen.sites))
    by_language = {language: _record_language(seen, language, pairs, sites, like) for language, pairs in caches.items()}
    records = {site: {language: of[site] for language, of in by_language.items()} for site in sites}
    return ActivationStats(recorded_model(seen, sites), 0 if like is None else like.context_length, records)


def _record_language(
    seen: ModelView, language: str, pairs: Caches, sites: tuple[str, ...], like: ActivationStats | None
) -> dict[str, LanguageRecord]:
    caches = [cache for _, cache in pairs]
    folds = _folds(seen.tokenizer, [tokens for tokens, _ in pairs])
    counted = (folds >= 0).nonzero()[:, 0]
    if not len(counted):
        raise CorpusError(f"The caches of {language!r} hold no counted token.")
    positions = sum(len(seen.cached(cache, sites[0], 0).flatten(0, 1)) for cache in caches)
    if positions != len(folds):
        raise StatisticsError(f"{len(folds)} tokens of {language!r} were given for caches of {positions} positions.")
    if like is not None and language in like.languages:
        grids = {site: like.records[site][language].grid() for site in sites}
    else:
        calibration = Calibration(seen, sites, counted)
        observing_caches(seen, caches, sites, calibration.see)
        grids = calibration.grids()
    sums = LanguageSums.empty(seen, grids, len(counted))
    on_device = folds.to(seen.device)

    def add(site: str, layer: int, values: Tensor, z: Tensor) -> None:
        sums.add(site, layer, values, z, on_device)

    observing_caches(seen, caches, sites, add)
    return sums.records(torch.bincount(folds[counted], minlength=FOLDS), {})


def _folds(tokenizer: Any, batches: Sequence[Int[Tensor, "batch position"]]) -> Int[Tensor, " token"]:
    """The fold of each token, rows being documents; -1 where it is not counted."""
    folds, rows = [torch.empty(0, dtype=torch.int64)], 0
    for tokens in batches:
        documents = torch.arange(rows, rows + len(tokens))[:, None].expand(tokens.shape)
        folds.append(torch.where(_counted(tokenizer, tokens), documents % FOLDS, -1).flatten())
        rows += len(tokens)
    return torch.cat(folds)


def _counted(tokenizer: Any, tokens: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    special = torch.tensor(sorted(tokenizer.all_special_ids) if tokenizer is not None else [], dtype=tokens.dtype)
    counted = ~torch.isin(tokens.cpu(), special)
    counted[:, 0] = False
    return counted
