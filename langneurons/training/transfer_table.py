"""Transfer: what models trained under several conditions scored in other languages, and what can be said of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from langneurons.effects.estimation import LEAST_SEEDS, LOSSES, Effect, difference, effect
from langneurons.effects.pairing import BASELINE, ROW
from langneurons.effects.table import EffectTable, balance_sentence, with_current_names
from langneurons.errors import EffectError, counted, unknown
from langneurons.evaluation.results import UNPATCHED, beside_controls, check_measured, parts_of, score_from_zero
from langneurons.settings import Testing
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout
from langneurons.training.conditions import ALL, CONTROL_OF, NONE

ROWS = ["condition", "target", "seed", "draw", "patch", "language", "item", "cluster", "metric", "value"]
ROWS += ["prediction", "gold"]
TRAININGS = ["condition", "target", "seed", "draw", "neurons", "parameters", "loss"]
MANIPULATION = ["moved", "put_back"]
CELL = ["condition", "target", "language", "patch"]
TRAINING = ["condition", "target", "seed", "draw"]
SIGNIFICANT = ("better", "worse", "slightly better", "slightly worse")
RANDOM, EVERY = "random", "every"
NAMES = {
    NONE: "training attention and head only",
    RANDOM: "training as many random neurons of the same layers",
    ALL: "training all neurons",
}


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(Result, kind="transfer", tables=("rows", "trainings", "references")):
    """Scores of models trained on one language, in others, by what was trained; ``transfer_experiment`` makes it.

    Attributes:
        rows: One row per item, metric, language, patch and training: condition, target ("" where one training serves
            every target), seed, draw, patch ("unpatched" among them), language, item, cluster, metric, value (0 to 1;
            of text, bits or nats summed over the item), prediction, gold; with text also weight, what a sum of values
            is divided by (bytes or tokens; 1 of tasks).
        trainings: One row per fine-tuning: condition, target, seed, draw, neurons (trained), parameters (trained, the
            head's too), loss (at the end); moved, how far the trained rows of the MLP moved relative to their norm; and
            put_back, on text, the share of the change of the loss in the source that goes when the trained neurons
            (with "all", "lora" and "full": the source's) get the weights back that they had.
        references: What the task is worth without a model, such as chance: language, reference, value.
        settings: Model, source, targets, task, protocol, options of the effects, and how everything was trained.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="condition target patch language metric",
            mark="item cluster",
            whole="seed draw",
            finite="value weight?",
        ),
        "trainings": layout(
            text="condition target", whole="seed draw neurons parameters", number="loss moved? put_back?"
        ),
        "references": layout(text="language reference", finite="value"),
        "settings": layout(text="model source task protocol", texts="targets", mapping="options"),
    }

    rows: pd.DataFrame
    trainings: pd.DataFrame
    references: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def conditions(self) -> list[str]:
        """The conditions that were trained, in their order."""
        return self.rows["condition"].unique().tolist()

    @property
    def reference(self) -> str:
        """The condition to compare with: attention and head alone, else random neurons, else the first one."""
        names = self.conditions
        if NONE in names:
            return NONE
        controlled = any({name, control} <= set(names) for name, control in CONTROL_OF.items())
        return RANDOM if controlled else next((name for name in names if name != RANDOM), RANDOM)

    def scores(self, metric: str | None = None) -> pd.DataFrame:
        """Every score, over the training seeds, beside what it cost and what it must exceed.

        Args:
            metric: A metric of the task; by default its main one.

        Returns:
            One row per condition, target, language and patch: score, its interval over seeds, then clusters (low,
            high), seed_sd, seeds, draws (of random neurons, per seed), items, clusters, neurons, parameters (trained),
            moved and put_back (see ``trainings``; means, where measured), then one column per reference of the main
            metric.

        Raises:
            EffectError: If there is no such metric.
        """
        metric = self._metric(metric)
        if metric not in self._scores:
            cells = self._by_metric[metric].items()
            self._scores[metric] = pd.DataFrame([self._score(metric, key, part) for key, part in cells])
        return self._scores[metric].copy()

    def effects(self, against: str = NONE, metric: str | None = None, on: str = "targets") -> EffectTable:
        """What training some neurons changed, against training others, on the same items with the same seeds.

        The interval is over seeds, then clusters; below six seeds there is no p-value.

        Args:
            against: A trained condition; "random" compares every set of neurons with the random ones that are as many
                in every layer, and leaves out the sets that have none.
            metric: A metric of the task; by default its main one.
            on: "targets", the languages transferred to, or "source", the language of the training data.

        Returns:
            Effects by ``trained`` and ``language`` (on the source: ``trained`` and ``target``), differences of scores
            (of losses: relative to the loss that is compared with), one Holm family. Against anything but random, sets
            that have random ones are placed among them: the mean effect over seeds among the means, over as many seeds,
            of every draw of random neurons.
            A draw holds other neurons for every seed, so that their luck is averaged and the set's own is not: where
            sets of neurons differ much beside the seeds, a set is placed outside more often than the level says.

        Raises:
            EffectError: If that condition was not trained, or nothing can be compared with it.

        Example:
            >>> cells = [(name, seed, item) for name in ("none", "source") for seed in range(6) for item in range(60)]
            >>> right = {"none": 2, "source": 4}
            >>> rows = [
            ...     (name, "", seed, 0, "unpatched", "hi", item, item // 2, "accuracy",
            ...      float((item * 7 + seed) % 5 < right[name]), "", "") for name, seed, item in cells
            ... ]
            >>> trained = [(name, "", seed, 0, 9, 90, 0.5) for name in right for seed in range(6)]
            >>> about = {"model": "m", "task": "xnli", "protocol": "head", "source": "en", "targets": ["hi"]}
            >>> options = {"margin": 0.01, "seed": 0, "resamples": 1000}
            >>> transfer = Transfer(
            ...     pd.DataFrame(rows, columns=ROWS), pd.DataFrame(trained, columns=TRAININGS),
            ...     pd.DataFrame(columns=["language", "reference", "value"]), {**about, "options": options},
            ... )
            >>> transfer.effects().rows[["trained", "language", "estimate", "verdict"]].to_numpy().tolist()
            [['source', 'hi', 0.4, 'better']]
        """
        metric, (place, pairs) = self._metric(metric), self._compared(against, on)
        cells = self._by_metric[metric]
        effects = {
            (mine[0], name): self._effect(metric, cells[mine], cells[theirs], len(pairs))
            for name, mine, theirs in pairs
        }
        baseline = self._named_condition(against)
        if not effects:
            raise EffectError(f"Nothing was trained that can be compared with {NAMES.get(against, repr(against))}.")
        family = f"{self._subject(metric)}, against {baseline}: {counted(len(effects), 'effect')}"
        settings = {"measured": metric, "against": baseline, **self._named()}
        table = EffectTable.of(effects, ("trained", place), family, settings)
        return table if against == RANDOM else self._beside_random(table, pairs, metric)

    def patch_effects(self, metric: str | None = None) -> EffectTable:
        """What each patch changed in each trained model, in the languages transferred to.

        Args:
            metric: A metric of the task; by default its main one.

        Returns:
            Effects by ``trained``, ``patch`` and ``language`` against the same models unpatched, one Holm family.

        Raises:
            EffectError: If no patch was evaluated.
        """
        metric = self._metric(metric)
        cells = self._by_metric[metric]
        patched = {
            key: part for key, part in cells.items() if key[3] != UNPATCHED and key[2] in self.settings["targets"]
        }
        effects = {
            (condition, patch, language): self._effect(
                metric, part, cells[condition, target, language, UNPATCHED], len(patched)
            )
            for (condition, target, language, patch), part in patched.items()
        }
        if not effects:
            raise EffectError("No trained model was patched: give patches= to transfer_experiment().")
        family = f"{self._subject(metric)}, patched against unpatched: {counted(len(effects), 'effect')}"
        settings = {"measured": metric, **self._named()}
        return EffectTable.of(effects, ("trained", "patch", "language"), family, settings)

    def verdict(self) -> str:
        """Say in one sentence what was found, against ``reference``.

        A sentence more where no trained model beats chance in the source language: then nothing can transfer.

        Raises:
            EffectError: If only one condition was trained.
        """
        table = self.effects(self.reference)
        rows, margin = table.rows, 100 * table.settings["margin"]
        unit = " %" if is_loss(self._metric(None)) else " points"
        groups = {verdict: part for verdict, part in rows.groupby("verdict")}
        clauses = [f"{name}: {_listed(groups[name])}" for name in SIGNIFICANT if name in groups]
        clauses = clauses or ["nothing better or worse"]
        if "no effect" in groups:
            clauses.append(f"no effect (within {margin:g}{unit}): {_listed(groups['no effect'])}")
        if "inconclusive" in groups:
            least, most = (100 * groups["inconclusive"]["minimal_detectable"]).agg(["min", "max"])
            detectable = "" if most == float("inf") else f" (detectable: {least:.1f} to {most:.1f}{unit})"
            clauses.append(f"inconclusive: {_listed(groups['inconclusive'])}{detectable}")
        seeds = int(rows["seeds"].to_numpy().min())
        few = f" {counted(seeds, 'seed')} cannot give a p-value; {LEAST_SEEDS} can." if seeds < LEAST_SEEDS else ""
        return f"Against {table.settings['against']}, {'; '.join(clauses)}.{few}{self._unlearned()}"

    def table(self) -> Table:
        """Scores by the main metric, over the training seeds, and the verdict below."""
        columns = {name: Column(unit="%", scale=100) for name in self.references["reference"].unique()}
        metric = self._metric(None)
        if is_loss(metric):
            columns["score"] = Column(metric.replace("_", " "), digits=3, bounds=("low", "high"))
            columns["seed_sd"] = Column("SD over seeds", digits=4)
        else:
            columns["score"] = Column(unit="%", scale=100, bounds=("low", "high"))
            columns["seed_sd"] = Column("SD over seeds", "points", 100, digits=2)
        columns |= {"moved": Column(unit="%", scale=100), "put_back": Column("put back", "%", 100)}
        return Table(self.scores(), columns, self._subject(metric), self._conclusion())

    def _conclusion(self) -> str:
        if len(self.conditions) < 2:
            return "One condition: nothing to compare it with."
        try:
            return f"{self.verdict()}{balance_sentence(self.settings)}"
        except EffectError as error:  # scores are worth showing all the same
            return str(error)

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        settings = fields["settings"]
        return {**fields, "settings": {**settings, "options": with_current_names(settings["options"])}}

    def _check_parts(self) -> None:
        _ = self._testing
        if self.rows.empty or not self.settings["targets"]:
            raise ValueError("it has no rows, or no language to transfer to")
        check_measured(self.rows, ["metric", *TRAINING, "language"], UNPATCHED, "patch")
        trained = set(self.trainings[TRAINING].itertuples(index=False, name=None))
        if trained != set(self.rows[TRAINING].itertuples(index=False, name=None)) or bool(
            self.trainings.duplicated(TRAINING).any()
        ):
            raise ValueError("the trainings are not those of the rows, each once")
        cells = self.rows[["metric", "condition", "target", "language"]].drop_duplicates()
        for metric, condition, target in {tuple(cell[:3]) for cell in cells.itertuples(index=False, name=None)}:
            of_training = cells.loc[
                (cells[["metric", "condition", "target"]] == [metric, condition, target]).all(axis=1)
            ]
            needed = {self.settings["source"], *([target] if target else self.settings["targets"])}
            if missing := needed - set(of_training["language"]):
                raise ValueError(f"{condition} was not measured in {', '.join(sorted(missing))}")

    def _effect(self, metric: str, condition: pd.DataFrame, baseline: pd.DataFrame, family: int = 1) -> Effect:
        compared = self._compared_by(metric, condition, baseline)
        return effect(*compared, is_loss(metric), testing=self._testing.in_family(family))

    def _compared_by(
        self, metric: str, condition: pd.DataFrame, baseline: pd.DataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame, str, str]:
        """Rows, the column that is compared, and what differences are divided by: of a loss, its baseline."""
        if not is_loss(metric):
            return condition, baseline, "value", ROW
        named = {"value": metric}
        return condition.rename(columns=named), baseline.rename(columns=named), metric, BASELINE

    def _named_condition(self, name: str) -> str:
        """A condition in words; without attention and head, "none" trains nothing."""
        parameters = self.trainings.loc[self.trainings["condition"] == name, "parameters"]
        return "no training" if name == NONE and not parameters.any() else NAMES.get(name, name)

    @property
    def _testing(self) -> Testing:
        return Testing(**self.settings["options"])

    def _subject(self, metric: str) -> str:
        named = self._named()
        return f"{named['model']}, {named['task']} {named['protocol']} {metric}, fine-tuned on {named['source']}"

    def _named(self) -> dict[str, Any]:
        names = ("model", "task", "protocol", "source", "balance")
        return {name: self.settings[name] for name in names if name in self.settings}

    def _metric(self, metric: str | None) -> str:
        possible = self.rows["metric"].unique().tolist()
        if metric is not None and metric not in possible:
            raise EffectError(unknown("metric", metric, possible))
        return possible[0] if metric is None else metric

    @cached_property
    def _by_metric(self) -> dict[str, dict[tuple, pd.DataFrame]]:
        """Metric -> (condition, target, language, patch) -> rows; several draws of one seed are averaged."""
        cells: dict[str, dict[tuple, pd.DataFrame]] = {}
        for (metric, *cell), part in parts_of(self.rows, ["metric", *CELL]).items():
            if len(set(part["draw"])) > 1:
                keys = ["language", "seed", "item", "cluster"]
                means = {name: "mean" for name in ("value", "weight") if name in part.columns}
                part = part.groupby(keys, sort=False, as_index=False).agg(means)
            cells.setdefault(metric, {})[tuple(cell)] = part
        return cells

    def _compared(self, against: str, on: str) -> tuple[str, list[tuple[str, tuple, tuple]]]:
        """The second key of the effects, and for each effect its value in that key and the two cells compared."""
        if on not in ("targets", "source"):
            raise EffectError(unknown("place", on, ("targets", "source")))
        if against not in (possible := [*self.conditions, RANDOM]):
            raise EffectError(unknown("trained condition", against, dict.fromkeys(possible)))
        targets, source = self.settings["targets"], self.settings["source"]
        pairs = []
        for condition in self.conditions:
            other = CONTROL_OF.get(condition, "") if against == RANDOM else against
            if other == condition or other not in self.conditions:
                continue
            for target in targets:
                mine, theirs = (self._trained_for(trained, target) for trained in (condition, other))
                language, name = (target, target) if on == "targets" else (source, mine or theirs or EVERY)
                pair = name, (condition, mine, language, UNPATCHED), (other, theirs, language, UNPATCHED)
                pairs += [pair] if pair not in pairs else []
        return ("language" if on == "targets" else "target"), pairs

    def _trained_for(self, condition: str, target: str) -> str:
        """The target that a condition was trained for; "" where one training serves all targets."""
        return target if (condition, target) in self._trained else ""

    @cached_property
    def _scores(self) -> dict[str, pd.DataFrame]:
        """Metric -> scores that were computed before: a report takes the same ones many times."""
        return {}

    @cached_property
    def _trained(self) -> set[tuple[str, str]]:
        return set(self.trainings[["condition", "target"]].itertuples(index=False, name=None))

    def _score(self, metric: str, key: tuple, part: pd.DataFrame) -> dict[str, Any]:
        about = dict(zip(CELL, key, strict=True))
        trained = self.trainings.loc[(self.trainings[["condition", "target"]] == list(key[:2])).all(axis=1)]
        size, score = self._size_of(metric, part)
        references = self.references.loc[self.references["language"] == about["language"]]
        references = references if metric == self._metric(None) else references[:0]
        return {
            **about,
            "score": score,
            "low": math.nan if size is None else size.low,
            "high": math.nan if size is None else size.high,
            "seed_sd": math.nan if size is None or size.seed_sd is None else size.seed_sd,
            "seeds": trained["seed"].nunique(),
            "draws": trained["draw"].nunique(),
            "items": part["item"].nunique(),
            "clusters": part["cluster"].nunique(),
            "neurons": int(trained["neurons"].to_numpy()[0]),
            "parameters": int(trained["parameters"].to_numpy()[0]),
            **{name: float(trained[name].mean()) for name in MANIPULATION if name in self._checked},
            **dict(zip(references["reference"], references["value"], strict=True)),
        }

    @cached_property
    def _checked(self) -> list[str]:
        """The columns of the manipulation check that say something."""
        return [name for name in MANIPULATION if name in self.trainings and bool(self.trainings[name].notna().any())]

    def _size_of(self, metric: str, part: pd.DataFrame) -> tuple[Effect | None, float]:
        """A cell's score, with its interval where there are clusters."""
        if not is_loss(metric):
            return score_from_zero(part, self._testing), float(part["value"].to_numpy().mean())
        score = float(part["value"].to_numpy().sum() / part["weight"].to_numpy().sum())
        if len(set(part["cluster"])) < 2:
            return None, score
        part = part.rename(columns={"value": metric})
        return effect(part, part.assign(**{metric: 0.0}), metric, "weight", testing=self._testing), score

    def _beside_random(self, table: EffectTable, pairs: list[tuple[str, tuple, tuple]], metric: str) -> EffectTable:
        """The table with every set of neurons placed among its random ones: one mean over all seeds for each draw."""
        if not set(CONTROL_OF.values()) & set(self.conditions):
            return table
        by_draw = parts_of(self.rows.loc[self.rows["metric"] == metric], [*CELL, "draw"])
        cells, controls = self._by_metric[metric], []
        for name, (condition, target, *where), theirs in pairs:
            like = (CONTROL_OF.get(condition), target, *where)
            for (*cell, draw), part in by_draw.items():
                if tuple(cell) == like:
                    controls.append(
                        (condition, name, draw, difference(*self._compared_by(metric, part, cells[theirs])))
                    )
        controls = pd.DataFrame(controls, columns=[*table.keys, "draw", "estimate"])
        return beside_controls(table, controls, self._testing.level)

    def _unlearned(self) -> str:
        """A sentence where no model beats chance in the language it was trained on."""
        metric, source = self._metric(None), self.settings["source"]
        chance = self.references.query("language == @source and reference == 'chance'")["value"]
        cells = [(key, part) for key, part in self._by_metric[metric].items() if key[2:] == (source, UNPATCHED)]
        lows = [low for key, part in cells if not math.isnan(low := self._score(metric, key, part)["low"])]
        if chance.empty or not lows or max(lows) > float(chance.to_numpy()[0]):
            return ""
        return f" No trained model beats chance in {source}, so there is nothing that could transfer."


def is_loss(metric: str) -> bool:
    """Whether a metric is a loss: lower is better, and it is no share of 1."""
    return metric in LOSSES


def _listed(rows: pd.DataFrame) -> str:
    """Conditions, each with the languages in which it is so."""
    place = "language" if "language" in rows.columns else "target"
    return ", ".join(f"{name} ({', '.join(part[place])})" for name, part in rows.groupby("trained", sort=False))
