"""Language, or the tokens it is written in? What is left of a neuron's language signal between equal tokens.

A neuron that fires on one frequent word looks like a language neuron. Within a token (the same token id, read in two
languages) such a neuron does not tell the languages apart, and a neuron of the language still does.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int

from langneurons.analysis.validity.firing import TokenFiring, firing_by_token
from langneurons.corpora import Corpus
from langneurons.errors import StatisticsError
from langneurons.identification.firing import jackknife_variance
from langneurons.identification.neurons import NeuronSet

Strata = Literal["token", "script"]
NEURONS_AT_ONCE = 256


def conditioned(
    model: torch.nn.Module,
    corpus: Corpus,
    neurons: NeuronSet,
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Pass over a corpus again and tell how much of each neuron's language signal is left within tokens and scripts.

    For several neuron sets, count once with ``firing_by_token`` and ask ``condition``.

    Args:
        model: From ``load_model``.
        corpus: From ``load_corpus``; shuffle it first if it is sorted.
        neurons: Labelled with languages of the corpus; choose few.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest has.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        progress: Show a progress bar on standard error.

    Returns:
        As ``condition``.

    Raises:
        NeuronSetError: If the set is empty.
        StatisticsError: If the sign of an activation means nothing at the neurons' site, or a label is no language of
            the corpus.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> corpus = ln.load_corpus("babel", ["en", "hi", "zh"])
        >>> table = conditioned(model, corpus, neurons, 500, 64, progress=False)
        >>> bool((table["coverage_script"] >= table["coverage_token"]).all())
        True
    """
    return condition(
        firing_by_token(model, corpus, neurons, tokens_per_language, context_length, batch_size, progress), neurons
    )


def condition(firing: TokenFiring, neurons: NeuronSet) -> pd.DataFrame:
    """Tell how much of each neuron's language signal is left within tokens and within scripts.

    The signal is raw = P(fires | own language) - P(fires | other languages), the others weighted by their tokens, which
    a packed corpus makes equal. Within strata (equal token ids, or tokens of equal script, that occur in the language
    and in another) it is the Mantel-Haenszel risk difference, sum_s w_s (p_own,s - p_other,s) / sum_s w_s with
    w_s = n_own n_other / (n_own + n_other) tokens of stratum s.

    What is left speaks of shared strata only: coverage is their share of the language's tokens. Where a script belongs
    to one language its words are shared with none, and what is left rests on punctuation, digits and loans.

    Source: Mantel and Haenszel 1959; the risk difference is Greenland and Robins 1985 (Biometrics 41, 55-68). Standard
    errors: jackknife that leaves out one document fold of all languages at a time.

    Args:
        firing: From ``firing_by_token``, of these neurons.
        neurons: Labelled with languages.

    Returns:
        One row a language and neuron of it: ``language``, ``layer``, ``neuron``, ``raw``; then for ``_token`` and
        ``_script``: ``within``, ``share_left`` (within / raw, NaN where raw is not above 0), ``share_left_se`` and
        ``coverage``.

    Raises:
        StatisticsError: If a label is no language that was counted, or only one language was.
        NeuronSetError: If a neuron was not watched.

    Example:
        >>> tokens = pd.DataFrame({"language": ["en", "fr"], "fold": 0, "token": 7, "script": "Latin", "count": 10})
        >>> firing = TokenFiring(tokens, np.array([[8], [2]]), np.array([3]))
        >>> neurons = ln.NeuronSet.of({"en": [(0, 3)]}, shape=(1, 4), site="act")
        >>> condition(firing, neurons)[["raw", "within_token", "share_left_token"]].round(2).values.tolist()
        [[0.6, 0.6, 1.0]]
    """
    languages = set(firing.tokens["language"])
    foreign = [label for label in neurons.languages if label not in languages]
    if foreign or len(languages) < 2:
        raise StatisticsError(
            f"Neurons of {', '.join(neurons.languages)} are compared between languages; counted were only "
            f"{', '.join(sorted(languages))}."
        )
    empty = pd.DataFrame({"language": pd.Series(dtype="str"), "layer": [], "neuron": []})
    pieces = [_of_language(firing, label, flat, neurons.shape[1]) for label, flat in neurons.members.items()]
    table = pd.concat([piece for piece in pieces if len(piece)] or [empty], ignore_index=True)
    return table.astype({"layer": "int64", "neuron": "int64"})


def _of_language(firing: TokenFiring, language: str, flat: Int[np.ndarray, " n"], width: int) -> pd.DataFrame:
    pieces = []
    for start in range(0, len(flat), NEURONS_AT_ONCE):
        chosen = flat[start : start + NEURONS_AT_ONCE]
        layers, indices = np.divmod(chosen, width)
        columns = {"language": language, "layer": layers, "neuron": indices}
        for by in ("token", "script"):
            columns |= _within(_Table.of(firing, language, firing.columns(chosen), by), by)
        pieces.append(pd.DataFrame(columns))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


@dataclass(frozen=True, eq=False)
class _Sums:
    """Tokens and firings by stratum, in one language (``own``) and in the others together."""

    own: Float[np.ndarray, " stratum"]
    others: Float[np.ndarray, " stratum"]
    fired_own: Float[np.ndarray, "stratum neuron"]
    fired_others: Float[np.ndarray, "stratum neuron"]

    def __sub__(self, part: "_Sums") -> "_Sums":
        return _Sums(
            self.own - part.own,
            self.others - part.others,
            self.fired_own - part.fired_own,
            self.fired_others - part.fired_others,
        )

    def raw(self) -> Float[np.ndarray, " neuron"]:
        """Difference of the shares of tokens on which a neuron fires."""
        own, others = max(self.own.sum(), 1), max(self.others.sum(), 1)
        return self.fired_own.sum(0) / own - self.fired_others.sum(0) / others

    def within(self) -> Float[np.ndarray, " neuron"]:
        """The Mantel-Haenszel risk difference; NaN without a shared stratum."""
        shared = self._shared()
        own, others = self.own[shared], self.others[shared]
        if not len(own):
            return np.full(self.fired_own.shape[1], np.nan)
        total = own + others
        moved = (others / total) @ self.fired_own[shared] - (own / total) @ self.fired_others[shared]
        return moved / (own * others / total).sum()

    def share_left(self) -> Float[np.ndarray, " neuron"]:
        """What is left within strata of the raw difference."""
        raw = self.raw()
        return np.divide(self.within(), raw, out=np.full(len(raw), np.nan), where=raw > 0)

    def coverage(self) -> float:
        """Share of the language's tokens in shared strata."""
        return float(self.own[self._shared()].sum() / self.own.sum())

    def _shared(self) -> np.ndarray:
        return np.flatnonzero((self.own > 0) & (self.others > 0))


@dataclass(frozen=True, eq=False)
class _Table:
    """The counted rows of one language against the others, for some neurons, with the rows' strata."""

    firing: TokenFiring
    columns: Int[np.ndarray, " neuron"]
    own: Bool[np.ndarray, " row"]
    stratum: Int[np.ndarray, " row"]
    strata: int

    @classmethod
    def of(cls, firing: TokenFiring, language: str, columns: Int[np.ndarray, " neuron"], by: Strata) -> "_Table":
        stratum, names = pd.factorize(firing.tokens[by])
        return cls(firing, columns, (firing.tokens["language"] == language).to_numpy(), stratum, len(names))

    def sums(self, rows: Bool[np.ndarray, " row"]) -> _Sums:
        """The sums of some rows."""
        own, fired_own = self._gathered(rows & self.own)
        others, fired_others = self._gathered(rows & ~self.own)
        return _Sums(own, others, fired_own, fired_others)

    def standard_error(self, total: _Sums) -> Float[np.ndarray, " neuron"]:
        """Jackknife that leaves out one document fold of every language at a time; NaN with fewer than two folds."""
        folds = self.firing.tokens["fold"].to_numpy()
        left_out, tokens = [], []
        for fold in np.unique(folds):
            part = self.sums(folds == fold)
            left_out.append((total - part).share_left())
            tokens.append(int(part.own.sum() + part.others.sum()))
        if len(tokens) < 2:
            return np.full(len(self.columns), np.nan)
        without = [torch.from_numpy(one)[None] for one in left_out]
        whole = torch.from_numpy(total.share_left())[None]
        return jackknife_variance(whole, without, torch.tensor(tokens))[0].sqrt().numpy()

    def _gathered(
        self, rows: Bool[np.ndarray, " row"]
    ) -> tuple[Float[np.ndarray, " stratum"], Float[np.ndarray, "stratum neuron"]]:
        places = np.flatnonzero(rows)
        gather = scipy.sparse.csr_array(
            (np.ones(len(places)), (self.stratum[places], np.arange(len(places)))), (self.strata, len(places))
        )
        count = self.firing.tokens["count"].to_numpy()[places].astype(float)
        return gather @ count, gather @ self.firing.fired[np.ix_(places, self.columns)].astype(float)


def _within(table: _Table, by: Strata) -> dict[str, object]:
    total = table.sums(np.ones(len(table.own), bool))
    return {
        "raw": total.raw(),
        f"within_{by}": total.within(),
        f"share_left_{by}": total.share_left(),
        f"share_left_{by}_se": table.standard_error(total),
        f"coverage_{by}": total.coverage(),
    }
