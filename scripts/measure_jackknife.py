"""Measure LAPE's jackknife errors against the true sampling error, beside a bootstrap over documents.

python -m scripts.measure_jackknife    one line per kind of documents, as docs/methods.md sums up; a few minutes
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from langneurons.identification.firing import jackknife_variance
from langneurons.recording.accumulation import FOLDS

LANGUAGES, NEURONS, DRAWS, BOOTSTRAPPED, RESAMPLES, SEED = 5, 150, 150, 6, 60, 1
# Documents, sigma of their lognormal length, how much they differ (intraclass correlation), and the range of P(x > 0).
SETTINGS = [
    (40, 0.8, 0.05, 0.01, 0.4),
    (123, 0.8, 0.05, 0.01, 0.4),
    (123, 1.2, 0.1, 0.002, 0.1),
    (123, 0.0, 0.05, 0.01, 0.4),
    (400, 0.8, 0.05, 0.002, 0.1),
]
Counts = tuple[Float[np.ndarray, "language document neuron"], Float[np.ndarray, "language document"]]


def entropy(p: Float[np.ndarray, "language neuron"]) -> Float[np.ndarray, " neuron"]:
    """LAPE's score."""
    shares = p / np.maximum(p.sum(0), 1e-300)
    return -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(0)


def drawn(random: np.random.Generator, p: np.ndarray, documents: int, sigma: float, correlation: float) -> Counts:
    """Documents of their own length and firing rates."""
    lengths = np.maximum(5, random.lognormal(np.log(150) - sigma**2 / 2, sigma, (LANGUAGES, documents)).astype(int))
    spread = (1 - correlation) / correlation
    rates = random.beta(
        np.maximum(p * spread, 1e-3)[:, None], ((1 - p) * spread)[:, None], (len(p), documents, NEURONS)
    )
    return random.binomial(lengths[:, :, None], rates).astype(float), lengths.astype(float)


def jackknife(active: np.ndarray, lengths: np.ndarray) -> Float[np.ndarray, " neuron"]:
    """The standard error that ``LAPE.scores`` gives."""
    totals, tokens = active.sum(1), lengths.sum(1)
    variance = torch.zeros(1, NEURONS, dtype=torch.float64)

    def without(language: int) -> Iterator[torch.Tensor]:
        for fold in range(FOLDS):
            p, documents = totals / tokens[:, None], np.arange(lengths.shape[1]) % FOLDS == fold
            own = totals[language] - active[language, documents].sum(0)
            p[language] = own / (tokens[language] - lengths[language, documents].sum())
            yield torch.from_numpy(entropy(p))[None]

    whole = torch.from_numpy(entropy(totals / tokens[:, None]))[None]
    for language in range(LANGUAGES):
        variance += jackknife_variance(whole, without(language))
    return variance[0].sqrt().numpy()


def bootstrap(random: np.random.Generator, active: np.ndarray, lengths: np.ndarray) -> Float[np.ndarray, " neuron"]:
    """The standard error of a bootstrap over documents."""
    documents = lengths.shape[1]
    scores = []
    for _ in range(RESAMPLES):
        weights = random.multinomial(documents, np.full(documents, 1 / documents), LANGUAGES)
        sums = np.einsum("ld,ldn->ln", weights, active)
        scores.append(entropy(sums / (weights * lengths).sum(1)[:, None]))
    return np.std(scores, axis=0, ddof=1)


def measure(documents: int, sigma: float, correlation: float, low: float, high: float) -> str:
    """Errors as a share of the true sampling error, and coverage, at the median neuron."""
    random = np.random.default_rng(SEED)
    base = np.exp(random.uniform(np.log(low), np.log(high), NEURONS))
    p = np.clip(base * np.exp(random.normal(0, 1, (LANGUAGES, NEURONS))), 1e-5, 0.95)
    scores, errors, resampled = [], [], []
    for draw in range(DRAWS):
        counts = drawn(random, p, documents, sigma, correlation)
        scores.append(entropy(counts[0].sum(1) / counts[1].sum(1)[:, None]))
        errors.append(jackknife(*counts))
        if draw < BOOTSTRAPPED:
            resampled.append(bootstrap(random, *counts))
    true = np.std(scores, axis=0, ddof=1)
    ratios = [np.median(np.sqrt(np.mean(np.square(of), axis=0)) / true) for of in (errors, resampled)]
    within = np.abs(np.array(scores) - entropy(p)) <= stats.t.ppf(0.975, FOLDS - 1) * np.array(errors)
    return (
        f"{documents} documents, length sigma {sigma:g}, correlation {correlation:g}, P {low:g} to {high:g}: "
        f"jackknife {ratios[0]:.2f}, bootstrap {ratios[1]:.2f}, coverage {np.median(within.mean(0)):.3f}"
    )


if __name__ == "__main__":
    for setting in SETTINGS:
        print(measure(*setting), flush=True)
