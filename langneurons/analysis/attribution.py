"""Attribution: what every neuron adds to the difference of two tokens' logits, directly and exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from langneurons import storage
from langneurons.corpora.languages import label_of
from langneurons.effects.table import VERDICTS
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout

SHOWN = 20  # neurons that are printed
PARTS = ("embedding", "attention", "neurons", "biases", "output")


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result, kind="attribution", tables=("rows", "rest", "points"), optional=("answers",)):
    """What every neuron adds to logit(token) - logit(rival) where the model writes a token, as a mean over points.

    A positive contribution pushes the token, a negative one its rival. Two numbers of each neuron: ``direct``, by the
    direct path alone (what it writes, through the final norm and the unembedding, the norm's scale frozen at what it
    is there), and ``exact``, the difference with the neuron minus the difference without it, through all later layers.

    Attributes:
        direct: The direct contribution of every neuron, in each language.
        rows: The neurons with the largest direct contributions of each language: language, layer, neuron, direct with
            direct_low and direct_high; exact with low, high, p, p_adjusted (Benjamini-Hochberg over all neurons of the
            model, those that were not measured counted as p = 1, so that choosing neurons by the same prompts claims
            nothing), verdict ("worse": it pushes the token) and detectable; items, clusters. From a single cluster
            there are no intervals.
        rest: What else adds up to the difference, per language: part ("embedding", "attention", "neurons" and "biases"
            of each layer, "output": biases of the final norm and the unembedding), layer, contribution.
        points: Where: language, item, cluster, before (the text so far), token and rival (ids), token_text,
            rival_text, rank (the rival's among all tokens, from 1), difference (of the logits).
        answers: Per language, the numbers of answers, judged, failed, left (those that leave the language at a place
            that can be told) and points; None where a point was given.
        settings: How it was measured.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="language",
            whole="layer neuron items clusters",
            number="direct direct_low direct_high exact low high detectable",
            share="p p_adjusted",
            choices=VERDICTS,
        ),
        "rest": layout(text="language", number="layer contribution", choices={"part": PARTS}),
        "points": layout(text="language before token_text rival_text", whole="token rival rank", finite="difference"),
        "settings": layout(text="model patch", texts="languages", whole="resamples exact"),
        "answers": layout(text="language", whole="answers judged failed left points"),
    }

    direct: Float[Tensor, "language layer neuron"]
    rows: pd.DataFrame
    rest: pd.DataFrame
    points: pd.DataFrame
    answers: pd.DataFrame | None
    settings: Mapping[str, Any]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the points."""
        return tuple(self.settings["languages"])

    def __getitem__(self, language: str) -> Float[Tensor, "layer neuron"]:
        """The direct contribution of every neuron in one language.

        Raises:
            LanguageError: If there is no point in the language.
        """
        return self.direct[self.languages.index(label_of(language, self.languages))]

    def table(self, show: int = SHOWN) -> Table:
        """The neurons that add most, by their exact contributions.

        Args:
            show: Number of neurons per language.
        """
        order = self.rows.sort_values("exact", key=np.abs, ascending=False, kind="stable").index
        rows = self.rows.loc[order].groupby("language", sort=False).head(show).reset_index(drop=True)
        tested = rows["low"].notna().any()
        names = ["language", "layer", "neuron", "exact", "low", "high", "direct", "direct_low", "direct_high"]
        names += ["p_adjusted", "verdict", "detectable"] if tested else []
        columns = {
            "exact": Column(signed=True, bounds=("low", "high")),
            "direct": Column(signed=True, bounds=("direct_low", "direct_high")),
            "p_adjusted": Column("p (BH)", digits=2),
            "detectable": Column(digits=2),
        }
        return Table(rows[names], columns, self._title(), self.caption, limit=max(len(rows), 1))

    @property
    def caption(self) -> str:
        """What was measured, on what, and how neurons were chosen."""
        settings = self.settings
        total = self.direct[0].numel()
        return (
            f"{settings['model']}, {settings['patch']}. Contributions to the logit of the token minus that of its "
            "rival: exact, with the neuron minus without it; direct, through the final norm with its scale frozen. "
            f"Measured exactly: the {settings['exact']:,} neurons of {total:,} with the largest direct contributions "
            "on the same points, so that estimates of the first ones are too large; p adjusted over all neurons of the "
            "model."
        )

    def _title(self) -> str:
        lines = []
        for language, points in self.points.groupby("language", sort=False):
            tokens = points["token_text"] + " / " + points["rival_text"]
            shown = ", ".join(map(repr, tokens.value_counts().index[:3]))
            parts = self.rest.loc[self.rest["language"] == language].groupby("part")["contribution"].sum()
            shares = ", ".join(f"{part} {parts[part]:+.3g}" for part in PARTS if part in parts)
            counts = (
                []
                if self.answers is None
                else self.answers.loc[self.answers["language"] == language].to_dict("records")
            )
            failed = "".join(f", of {row['failed']} failed of {row['judged']} judged answers" for row in counts[:1])
            lines.append(
                f"{language}: {len(points)} points in {points['cluster'].nunique()} clusters{failed} (token / rival: "
                f"{shown}); difference {points['difference'].mean():+.3g} = {shares}"
            )
        return "\n".join(lines)

    def _check_parts(self) -> None:
        languages, shape = self.languages, self.direct.shape
        fits = len(shape) == 3 and len(set(languages)) == len(languages) == shape[0]
        if not fits or self.rows.empty or not set(self.rows["language"]) <= set(languages):
            raise ValueError("it needs the contribution of every neuron for each language")
        if not self.direct.is_floating_point() or not bool(self.direct.isfinite().all()):
            raise ValueError("a contribution is not finite")

    def _write(self, folder: Path) -> JsonObject:
        checksum = storage.write_tensors(folder / "direct.safetensors", {"direct": self.direct})
        return {**super()._write(folder), "direct": checksum}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        tensors = storage.read_tensors(folder / "direct.safetensors", str(content["direct"]))
        return {**super()._read(folder, content), "direct": tensors["direct"]}
