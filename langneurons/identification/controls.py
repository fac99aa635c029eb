"""Drawing control neurons: outside a neuron set, but in the same layers and alike in what they write.

``NeuronSet.matched_control`` and ``Patch.matched_control`` are the ways in; what is drawn depends on the controls'
seed, the number of the draw and the label alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int

from langneurons import storage
from langneurons.corpora.languages import spelled
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, counted, unknown, warn_user
from langneurons.identification.firing import check_sign_means_something, sign_means_something
from langneurons.identification.indices import shape_text
from langneurons.recording.records import ROUTER_SITES
from langneurons.recording.statistics import PUBLISHED, ActivationStats, check_statistics
from langneurons.settings import Controls, Match, whole_number

DECILES = 10
FREQUENT = 0.75  # quantile of a layer's activation probabilities above which a neuron is called frequent
SEEDS_APART = 10_007  # so that the draws of different seeds are different
NEAREST = 10  # candidates among which one is drawn at random
FIRING = 0.1  # largest difference of P(active) where firing must match
SILENT = 1e-12
UNEVEN, UNEVEN_RATIO = 0.1, 0.1  # standard deviations, and share, beyond which controls are out of balance


def draw_seed(controls: Controls, draw: int) -> int:
    """The seed of one draw."""
    return controls.seed * SEEDS_APART + whole_number(draw, "draw", NeuronSetError, least=0)


def matched_by(controls: Controls) -> Match:
    """What controls share with the neurons they stand for: what they write where there are statistics, or the layer."""
    return controls.match or ("write" if statistics_of(controls) else "layer")


def statistics_of(controls: Controls) -> list[ActivationStats]:
    """The statistics that controls are matched by."""
    return [controls.stats] if isinstance(controls.stats, ActivationStats) else list(controls.stats or [])


def statistics_at(controls: Controls, site: str) -> ActivationStats | None:
    """Those of the controls' statistics that hold a site, or the first, if none does; None without statistics."""
    statistics = statistics_of(controls)
    return next((stats for stats in statistics if site in stats.records), next(iter(statistics), None))


@dataclass(frozen=True, eq=False)
class Candidates:
    """What controls of one label are drawn from.

    Attributes:
        label: The label.
        shape: Layers and neurons per layer.
        eligible: Neurons that can be drawn, flat.
        stratum: Number of the group of each neuron in which controls are drawn, flat: its layer, or a decile of it.
        write: How much every neuron writes in the label's language, flat; None without statistics.
        active: How often every neuron is active there, flat; None where the sign of the site means nothing.
    """

    label: str
    shape: tuple[int, int]
    eligible: Bool[np.ndarray, " neuron"]
    stratum: Int[np.ndarray, " neuron"]
    write: Float[np.ndarray, " neuron"] | None = None
    active: Float[np.ndarray, " neuron"] | None = None

    @classmethod
    def of(
        cls,
        label: str,
        shape: tuple[int, int],
        taken: Int[np.ndarray, " taken"],
        stats: ActivationStats | None,
        controls: Controls,
    ) -> "Candidates":
        """The candidates for a label.

        Args:
            label: The label.
            shape: Layers and neurons per layer.
            taken: Flat indices that cannot be drawn.
            stats: Statistics of the model at the site, if there are any.
            controls: What must match, and which neurons are eligible.

        Raises:
            NeuronSetError: If there are no statistics to match by.
            LanguageError: If the label was not recorded.
            StatisticsError: If firing must match, or specific neurons are spared, where the sign means nothing.
        """
        layers, width = shape
        eligible, stratum = np.ones(layers * width, dtype=bool), np.repeat(np.arange(layers), width)
        eligible[taken] = False
        layer_is_enough = matched_by(controls) == "layer" and not controls.spare and not controls.firing
        language = None if stats is None else spelled(label, stats.languages)
        if stats is None or language is None:
            if layer_is_enough:
                return cls(label, shape, eligible, stratum)
            if stats is None:
                raise NeuronSetError("Matching what neurons write needs statistics: give stats=, or match='layer'.")
            raise LanguageError(
                unknown("language", label, stats.languages)
                + " A label that was not recorded can be matched by 'layer' only."
            )
        if matched_by(controls) == "layer+magnitude":
            magnitude = stats[language].mean_magnitude().values.double() * stats.output_norm().double()
            if stats.site in ROUTER_SITES:
                magnitude = stats.write(language)
            rank = magnitude.numpy().argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            stratum = stratum * DECILES + (rank * DECILES // width).ravel()
        if controls.spare or controls.firing:
            check_sign_means_something(stats)
        active = stats[language].probability().values.double().numpy().ravel() if sign_means_something(stats) else None
        if controls.spare:
            eligible &= ~_most_specific(stats, language, controls.spare)
        return cls(label, shape, eligible, stratum, stats.write(language).numpy().ravel(), active)

    def draw(self, flat: Int[np.ndarray, " n"], controls: Controls, seed: int) -> Int[np.ndarray, " drawn"]:
        """Draw neurons that stand for a label's neurons.

        Args:
            flat: Flat indices of the label's neurons.
            controls: What must match.
            seed: Seed of the draw.

        Returns:
            Flat indices, sorted; as many as the label has, unless the dose must match.

        Raises:
            NeuronSetError: If a layer has too few eligible neurons: nothing is padded.
        """
        generator, match = random_stream(seed, "control", self.label), matched_by(controls)
        draws = [np.empty(0, np.int64)]
        for stratum, wanted in zip(*np.unique(self.stratum[flat], return_counts=True), strict=True):
            pool = np.flatnonzero((self.stratum == stratum) & self.eligible)
            members = flat[self.stratum[flat] == stratum]
            if len(pool) < wanted and match != "dose":
                raise NeuronSetError(_too_few(self.label, int(stratum), int(wanted) - len(pool), match))
            if match == "write":
                draws.append(self._of_equal_write(members, pool, controls, generator))
            elif match == "dose":
                draws.append(self._of_equal_dose(members, pool, generator))
            else:
                draws.append(generator.choice(pool, int(wanted), replace=False))
        return np.sort(np.concatenate(draws))

    def _of_equal_write(
        self,
        members: Int[np.ndarray, " n"],
        pool: Int[np.ndarray, " candidate"],
        controls: Controls,
        generator: np.random.Generator,
    ) -> Int[np.ndarray, " n"]:
        """One neuron for each, drawn among the nearest that are left, so that the sums of writes stay together.

        Where the layer has none within the caliper the nearest is taken, and ``balance_of`` counts it.
        """
        assert self.write is not None
        write, free = np.log(self.write + SILENT), np.ones(len(pool), dtype=bool)
        places, owed = [], 0.0
        for neuron in generator.permutation(members):
            target = write[neuron] + np.clip(
                owed / max(self.write[neuron], SILENT), -controls.caliper, controls.caliper
            )
            distance = np.abs(write[pool] - target) / controls.caliper
            outside = np.abs(write[pool] - write[neuron]) > controls.caliper
            if controls.firing and self.active is not None:
                apart = np.abs(self.active[pool] - self.active[neuron]) / FIRING
                distance, outside = np.hypot(distance, apart), outside | (apart > 1)
            distance = np.where(free, distance, np.inf)
            near = np.argpartition(distance, min(NEAREST, len(pool) - 1))[:NEAREST]
            inside = near[free[near] & ~outside[near]]
            place = int(generator.choice(inside)) if len(inside) else int(np.argmin(distance))
            free[place] = False
            places.append(place)
            owed += self.write[neuron] - self.write[pool[place]]
        return pool[places]

    def _of_equal_dose(
        self, members: Int[np.ndarray, " n"], pool: Int[np.ndarray, " candidate"], generator: np.random.Generator
    ) -> Int[np.ndarray, " drawn"]:
        """Neurons in random order until they write as much as the label's do in this layer; all, where that is less."""
        assert self.write is not None
        order = generator.permutation(pool)
        sums, wanted = np.cumsum(self.write[order]), self.write[members].sum()
        return order[: 1 + int(np.argmin(np.abs(sums - wanted)))] if len(order) else order


def _most_specific(stats: ActivationStats, label: str, share: float) -> Bool[np.ndarray, " neuron"]:
    """The neurons whose P(active) exceeds its mean in other languages by most."""
    p, own = stats.probability(), stats.languages.index(label)
    others = [index for index in range(len(stats.languages)) if index != own]
    specific = (p[own] - p[others].mean(0) if others else p[own]).ravel().numpy()
    return specific > np.quantile(specific, 1 - share)


def balance_of(
    neurons: Mapping[str, Int[np.ndarray, " n"]],
    draws: Sequence[Mapping[str, Int[np.ndarray, " _"]]],
    candidates: Mapping[str, Candidates],
    caliper: float,
) -> pd.DataFrame:
    """Compare what sets write, and how often they are active, with what their controls do.

    Args:
        neurons: Label -> flat indices of its neurons.
        draws: For each draw, label -> flat indices of the controls.
        candidates: Label -> what the controls were drawn from.
        caliper: Difference of log writes beyond which a neuron counts as without candidate.

    Returns:
        One row per label: neurons; eligible, the neurons that could be drawn in its layers; write_ratio, what the
        controls write in sum over what the set writes; write_difference and active_difference, the difference of mean
        log writes and of mean P(active), set minus controls, over the standard deviation within both;
        without_candidate, the set's neurons that no eligible neuron of the layer is like within the caliper. NaN
        without statistics. overlap is the share of a draw's neurons that another draw has too (by what they write, mean
        over pairs of draws), and spread how much more one more set varies than the draws do, were effects what neurons
        write times a chance factor: sqrt((1 + overlap) / (1 - overlap)), times the root of the ratio of their sums of
        squared writes. It is infinite where all draws are the same.

    Source:
        Standardised differences as in Austin 2009 (doi 10.1002/sim.3697): above 0.1 a covariate is out of balance.
    """
    rows = []
    for label, flat in neurons.items():
        of_label = candidates[label]
        controls = np.concatenate([np.empty(0, np.int64), *(draw[label] for draw in draws)])
        layers = np.unique(flat // of_label.shape[1])
        in_layers = of_label.eligible.reshape(of_label.shape)[layers]
        row: dict[str, object] = {"language": label, "neurons": len(flat), "eligible": int(in_layers.sum())}
        if of_label.write is not None and len(controls):
            write, log_write = of_label.write, np.log(of_label.write + SILENT)
            row["write_ratio"] = float(write[controls].sum() / len(draws) / write[flat].sum())
            row["write_difference"] = _standardised(log_write[flat], log_write[controls])
            if of_label.active is not None:
                row["active_difference"] = _standardised(of_label.active[flat], of_label.active[controls])
            row["without_candidate"] = _without_candidate(flat, of_label, caliper)
        row |= _spread(flat, [draw[label] for draw in draws], of_label)
        rows.append(row)
    columns = ["language", "neurons", "eligible", "write_ratio", "write_difference", "active_difference"]
    return pd.DataFrame(rows, columns=pd.Index([*columns, "without_candidate", "overlap", "spread"]))


def _spread(
    flat: Int[np.ndarray, " n"], draws: Sequence[Int[np.ndarray, " _"]], candidates: Candidates
) -> dict[str, float]:
    """The overlap of draws, and how much more one more set varies than they do."""
    weights = np.ones(len(candidates.eligible)) if candidates.write is None else candidates.write + SILENT
    members = np.zeros((len(draws), len(weights)), dtype=bool)
    for draw, neurons in enumerate(draws):
        members[draw, neurons] = True
    taken = members[:, members.any(0)]
    shared = (taken * weights[members.any(0)]) @ taken.T
    total, pairs = float(np.trace(shared)), len(draws) * (len(draws) - 1)
    overlap = float((shared.sum() - total) / pairs / (total / len(draws))) if pairs and total else 0.0
    squares = (taken * weights[members.any(0)] ** 2).sum() / max(1, len(draws))
    if overlap >= 1 or not squares:
        return {"overlap": overlap, "spread": float("inf") if overlap >= 1 else 1.0}
    spread = np.sqrt((weights[flat] ** 2).sum() / squares * (1 + overlap) / (1 - overlap))
    return {"overlap": overlap, "spread": float(spread)}


def reported_balance(balance: pd.DataFrame, controls: Controls) -> dict[str, object]:
    """What the settings of a result keep of its controls' balance; warns where they do not write what the sets write.

    Args:
        balance: What ``NeuronSet.balance`` gave.
        controls: How the controls were drawn.

    Returns:
        ``rows``, the table, and ``sentence``, which says it in words for captions.
    """
    one_by_one = matched_by(controls) == "write"
    sentence = f"Controls: {counted(controls.draws, 'draw')}, matched by {matched_by(controls)}"
    rows = balance.dropna(subset=["write_ratio"]).to_dict("records")
    if rows:
        ratios, apart = [row["write_ratio"] for row in rows], max(abs(row["write_difference"]) for row in rows)
        active = max(abs(row["active_difference"]) for row in rows)
        sentence += f"; they write {min(ratios):.2f} to {max(ratios):.2f} times what the sets write "
        sentence += f"(log writes differ by up to {apart:.2f} SD"
        sentence += ")" if np.isnan(active) else f", P(active) by up to {active:.2f} SD)"
        lonely, total = (sum(int(row[name]) for row in rows) for name in ("without_candidate", "neurons"))
        if lonely and one_by_one:
            sentence += (
                f"; for {lonely} of {total} neurons no other of their layer writes as much, so the nearest is used"
            )
    spread, overlap = (float(balance[name].to_numpy(float).max()) for name in ("spread", "overlap"))
    if np.isinf(spread):
        sentence += "; all draws of a label are the same neurons, so that there is no p-value"
    elif spread > 1 + UNEVEN_RATIO:
        sentence += (
            f"; draws have up to {100 * overlap:.0f} % of what they write in common, so they vary too little: "
            f"their distances from their mean are multiplied by up to {spread:.2f}"
        )
    uneven = [
        row
        for row in rows
        if abs(row["write_ratio"] - 1) > UNEVEN_RATIO or (one_by_one and abs(row["write_difference"]) > UNEVEN)
    ]
    if uneven and matched_by(controls) in ("write", "dose"):
        labels, ratio = ", ".join(str(row["language"]) for row in uneven), uneven[0]["write_ratio"]
        warn_user(
            f"Controls of {labels} do not write what the neurons write that they stand for: {ratio:.2f} times as much "
            f"in {uneven[0]['language']}. Possible: match='dose', or a smaller set."
        )
    return {"rows": json.loads(str(balance.to_json(orient="records"))), "sentence": f"{sentence}."}


def _standardised(of_set: Float[np.ndarray, " n"], of_controls: Float[np.ndarray, " drawn"]) -> float:
    spread = np.sqrt((of_set.var() + of_controls.var()) / 2)
    difference = float(of_set.mean() - of_controls.mean())
    return difference / spread if spread > 0 else float("nan") if difference else 0.0


def _without_candidate(flat: Int[np.ndarray, " n"], candidates: Candidates, caliper: float) -> int:
    """Number of neurons that no eligible neuron of their layer writes about as much as."""
    assert candidates.write is not None
    log_write, width, lonely = np.log(candidates.write + SILENT), candidates.shape[1], 0
    for layer in np.unique(flat // width):
        eligible = candidates.eligible[layer * width : (layer + 1) * width]
        pool = np.sort(log_write[layer * width : (layer + 1) * width][eligible])
        own = log_write[flat[flat // width == layer]]
        if not len(pool):
            lonely += len(own)
            continue
        place = np.searchsorted(pool, own).clip(1, len(pool) - 1) if len(pool) > 1 else np.zeros(len(own), np.int64)
        nearest = np.minimum(np.abs(pool[place] - own), np.abs(pool[np.maximum(place - 1, 0)] - own))
        lonely += int((nearest > caliper).sum())
    return lonely


def fitting_statistics(stats: ActivationStats, shape: tuple[int, int], site: str, model: str | None) -> ActivationStats:
    """The statistics at a neuron set's site.

    Raises:
        SiteMismatchError: If they hold another site or model.
        NeuronSetError: If their shape is another.
    """
    check_statistics(stats)
    stats = stats.at(site)
    if model and stats.fingerprint not in (model, PUBLISHED):
        raise SiteMismatchError(f"The statistics belong to model {stats.fingerprint[:8]}, this set to {model[:8]}.")
    if stats.shape != shape:
        raise NeuronSetError(
            f"The statistics have {shape_text(stats.shape)}, this set {shape_text(shape)}: "
            "they belong to different models."
        )
    return stats


def random_stream(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on the seed and the names alone.

    Example:
        >>> bool(random_stream(0, "hi").random() == random_stream(0, "hi").random())
        True
    """
    return np.random.Generator(np.random.PCG64(int(storage.fingerprint(str(seed), *names), 16)))


def choose_neutral(
    label: str, flat: Int[np.ndarray, " n"], taken: Int[np.ndarray, " taken"], stats: ActivationStats
) -> Int[np.ndarray, " n"]:
    """Choose as many frequent neurons as a label has in every layer, none of them taken, the most even over languages.

    Args:
        label: The label that they stand for.
        flat: Flat indices of the label's neurons.
        taken: Flat indices that cannot be chosen.
        stats: Statistics of the model.

    Returns:
        Flat indices, sorted.

    Raises:
        NeuronSetError: If a layer has too few frequent neurons.
        StatisticsError: If the sign of the site means nothing.
    """
    check_sign_means_something(stats)
    p = stats.probability()
    mean = reduce(p, "language layer neuron -> layer neuron", "mean")
    frequent = mean >= mean.quantile(FREQUENT, dim=1, keepdim=True)
    frequent.view(-1)[torch.from_numpy(taken.copy())] = False
    evenness = torch.special.entr(p / p.sum(0).clamp(min=1e-12)).sum(0).where(frequent, -torch.inf).numpy()
    width, members = stats.shape[1], [np.empty(0, np.int64)]
    for layer, wanted in zip(*np.unique(flat // width, return_counts=True), strict=True):
        available = int(frequent[layer].sum())
        if available < wanted:
            raise NeuronSetError(
                f"Layer {layer} has {available} frequent neurons outside the set, and {wanted} are needed as a control "
                f"of {label!r}: try a smaller set."
            )
        members.append(layer * width + np.argsort(-evenness[layer], kind="stable")[:wanted])
    return np.sort(np.concatenate(members))


def _too_few(label: str, stratum: int, missing: int, match: Match) -> str:
    if match in ("layer", "write"):
        where, instead = f"Layer {stratum}", "a smaller set" + (", or match='dose'" if match == "write" else "")
    else:
        layer, decile = divmod(stratum, DECILES)
        where, instead = f"Layer {layer} (magnitude decile {decile + 1})", "a smaller set, or match='layer'"
    return f"{where} has {missing} neurons too few for a control of {label!r}: try {instead}."
