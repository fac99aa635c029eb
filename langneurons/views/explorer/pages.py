"""A neuron's page, made when the neuron is clicked: of the texts of a corpus, or without any."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import EXAMPLES, Profiles
from langneurons.analysis.profiling import output_tokens, profile, similar_neurons
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.corpora import Corpus
from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification.firing import check_sign_means_something
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.patches.intervening import check_fits, patching, unreachable
from langneurons.patches.patch import Patch
from langneurons.recording.looking import activations
from langneurons.recording.statistics import ActivationStats
from langneurons.tasks.batching import scoring
from langneurons.tasks.completing import complete, prompt_ids
from langneurons.views.pages import NeuronPage, neuron_page, page_content, rendered
from langneurons.views.style import FONT
from langneurons.views.tokens import coloured_text

TEXTS, OUTPUT_TOKENS, SIMILAR = 3, 10, 8


class Pages:
    """Pages of a model's neurons, each made once.

    Args:
        model: From ``load_model``.
        stats: Statistics of the model at the neurons' site.
        neurons: Whose languages the pages name.
        corpus: Texts to look through, None for pages without texts.
        polysemanticity: What is known of what neurons carry.
        ablation: What is known of what is lost without them.
        documents: How many documents a language to look through.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        stats: ActivationStats,
        neurons: NeuronSet,
        corpus: Corpus | None,
        polysemanticity: Polysemanticity | None,
        ablation: Ablation | None,
        documents: int,
    ) -> None:
        self._model, self._stats, self._neurons = model, stats, neurons
        self._corpus, self._documents = corpus, documents
        self._known = (polysemanticity, ablation, {"this set": neurons})
        self._made: dict[tuple[int, int], NeuronPage] = {}

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        return neuron in self._made

    def __getitem__(self, neuron: tuple[int, int]) -> NeuronPage:
        """The page of a neuron, by layer and index."""
        if neuron not in self._made:
            self._made[neuron] = self._without_texts(neuron) if self._corpus is None else self._with_texts(neuron)
        return self._made[neuron]

    def alone(self, neuron: tuple[int, int]) -> NeuronSet:
        """The neuron as a set of its own."""
        whole = self._neurons
        return NeuronSet.of({"chosen": [neuron]}, whole.shape, whole.site, whole.model, "chosen")

    def _with_texts(self, neuron: tuple[int, int]) -> NeuronPage:
        assert self._corpus is not None
        one = self.alone(neuron)
        profiles = profile(
            self._model, one, self._corpus, self._stats, k=TEXTS, documents=self._documents, progress=False
        )
        return neuron_page(profiles, neuron, self._stats, *self._known)

    def _without_texts(self, neuron: tuple[int, int]) -> NeuronPage:
        seen, one = view(self._model), self.alone(neuron)
        settings = {"model": seen.name, "fingerprint": self._stats.fingerprint, "site": one.site, "gated": seen.gated}
        profiles = Profiles(
            pd.DataFrame(columns=["text", "language", "document", "pieces"]),
            pd.DataFrame(columns=EXAMPLES),
            output_tokens(seen, one, OUTPUT_TOKENS),
            similar_neurons(seen, one, self._stats, SIMILAR),
            {**settings, "neurons": [neuron], "languages": []},
        )
        content = page_content(profiles, neuron, self._stats, *self._known)
        title = f"Layer {neuron[0]}, neuron {neuron[1]} of {seen.name}"
        return NeuronPage(neuron, title, rendered(content, brief=True))


ACTIVE, MAGNITUDE = "share active", "mean magnitude"


def response(stats: ActivationStats) -> tuple[str, Float[Tensor, "language layer neuron"]]:
    """Measure how much every neuron responds to every language, in a way that means something at the site.

    Returns:
        What it is, and its values: the share of tokens with an activation above zero, or where the sign means nothing
        the mean absolute activation.

    Example:
        >>> response(stats)[0]
        'share active'
    """
    try:
        check_sign_means_something(stats)
    except StatisticsError:
        return MAGNITUDE, stats.mean_magnitude()
    return ACTIVE, stats.probability()


def ranked(
    neurons: NeuronSet,
    languages: tuple[str, ...],
    responses: Float[Tensor, "language layer neuron"],
    language: str,
    layer: int,
) -> pd.DataFrame:
    """List a layer's neurons of one language by how far they are ahead in it.

    Args:
        neurons: A neuron set.
        languages: The recorded languages.
        responses: What ``response`` measured in them.
        language: A label of the set.
        layer: Which layer.

    Returns:
        Columns layer, neuron, own (the response in the language), elsewhere (the largest in another), where (which one)
        and ahead (own - elsewhere); NaN of a label that was not recorded, which leaves the order of the neurons.

    Raises:
        LanguageError: If the set has no such label.
        NeuronSetError: If there is no such layer, or none of these neurons in it.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(0, 1), (0, 2)]}, (1, 3), "act")
        >>> shares = torch.tensor([[[0.1, 0.2, 0.1]], [[0.3, 0.3, 0.9]]])
        >>> ranked(neurons, ("en", "hi"), shares, "hi", 0)["neuron"].tolist()
        [2, 1]
    """
    layers = neurons.shape[0]
    per_layer = neurons[language].per_layer()
    if not 0 <= layer < layers:
        raise NeuronSetError(f"There is no layer {layer}: layers go from 0 to {layers - 1}.")
    if layer not in per_layer:
        has = ", ".join(map(str, per_layer)) or "no layer"
        raise NeuronSetError(f"{language} has no neurons in layer {layer}: it has some in {has}.")
    members = per_layer[layer]
    found = responses[:, layer, members].double()
    own, others = torch.full_like(found[0], torch.nan), found
    if language in languages:
        position = languages.index(language)
        own, others = found[position], found.clone()
        others[position] = -torch.inf
    elsewhere, where = others.max(0)
    known = torch.isfinite(elsewhere)
    elsewhere = elsewhere.where(known, torch.nan)
    table = pd.DataFrame(
        {
            "layer": layer,
            "neuron": members.numpy(),
            "own": own.numpy(),
            "elsewhere": elsewhere.numpy(),
            "where": [languages[place] if one else "" for place, one in zip(where.tolist(), known, strict=True)],
            "ahead": (own - elsewhere).numpy(),
        }
    )
    return table.iloc[np.argsort(-table["ahead"].to_numpy(), kind="stable")].reset_index(drop=True)


NEW_TOKENS = 20
ENDED = "(the model ends the text here)"
CAUTION = "This is one text; ln.ablate() measures the effect on a corpus, with interval and controls."


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """What a patch did to one text.

    Attributes:
        about: What was written where, in words.
        tokens: One row a token: token, its loss unpatched and patched (nats; NaN where nothing comes before it).
        unpatched: How the model goes on from the text.
        patched: How it goes on with the patch.
        note: What else must be known; empty where nothing.
    """

    about: str
    tokens: pd.DataFrame
    unpatched: str
    patched: str
    note: str = ""

    @property
    def sentence(self) -> str:
        """The effect on the whole text, in words."""
        losses = self.tokens[["unpatched", "patched"]].dropna().to_numpy()
        counted = len(losses)
        if not counted:
            return f"{self.about}: the text is one token, which nothing predicts."
        before, after = losses.mean(0).tolist()
        return (
            f"{self.about}: the loss of this text goes from {before:.3f} to {after:.3f} nats a token "
            f"({100 * (after / before - 1):+.2f} %, {counted} tokens)."
        )

    def __repr__(self) -> str:
        written = f"Unpatched it goes on: {self.unpatched or ENDED}\nPatched it goes on: {self.patched or ENDED}"
        return "\n".join(filter(None, [self.sentence, self.note, written, CAUTION]))

    def _repr_html_(self) -> Markup:
        change = (self.tokens["patched"] - self.tokens["unpatched"]).tolist()
        return Markup(
            '<div style="font-family:{font}"><p><b>{sentence}</b> {note}</p>'
            "<p>Vermilion tokens are harder to predict with the patch, blue ones easier.</p>{tokens}"
            '<table style="margin-top:.8em"><caption style="text-align:start">How the model goes on</caption>'
            '<tr><th scope="row">unpatched</th><td dir="auto" style="text-align:start">{unpatched}</td></tr>'
            '<tr><th scope="row">patched</th><td dir="auto" style="text-align:start">{patched}</td></tr></table>'
            "<p><small>{caution}</small></p></div>"
        ).format(
            font=FONT,
            sentence=self.sentence,
            note=self.note,
            tokens=coloured_text(self.tokens["token"].tolist(), change),
            unpatched=self.unpatched or ENDED,
            patched=self.patched or ENDED,
            caution=CAUTION,
        )


def try_out(model: torch.nn.Module, patch: Patch, text: str, about: str, new_tokens: int = NEW_TOKENS) -> Trial:
    """Read a text, and go on from it, without and with a patch.

    Args:
        model: From ``load_model``.
        patch: What to write.
        text: Any text that leaves room in the model's context for the new tokens.
        about: The patch in words.
        new_tokens: How far to go on, greedily.

    Returns:
        What changed.

    Raises:
        ModelError: If the text is empty or too long.
        TaskError: If it leaves no room for the new tokens.
        PatchError: If the patch does not fit the model.
        SiteMismatchError: If neurons or values belong to another model.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(7, 10)]}, stats.shape, "act")
        >>> trial = try_out(model, ln.SetTo(neurons, 0.0), "The boy drinks water.", "neuron 10 of layer 7 set to 0")
        >>> trial.tokens.columns.tolist(), len(trial.tokens)
        (['token', 'unpatched', 'patched'], 7)
    """
    seen = view(model)
    check_fits(patch, seen)
    pieces = activations(model, text, patch.neurons).index.get_level_values("token").tolist()
    ids = prompt_ids(seen.tokenizer, text)  # pyright: ignore[reportArgumentType]: activations asked for a tokenizer
    plain, unpatched = complete(model, [ids], new_tokens, ())[0].text, _read(seen, ids, len(pieces))
    with patching(seen, [patch]):
        changed, patched = complete(model, [ids], new_tokens, ())[0].text, _read(seen, ids, len(pieces))
    table = pd.DataFrame({"token": pieces, "unpatched": unpatched, "patched": patched})
    return Trial(about, table, plain, changed, _note(seen, patch))


def _read(seen: ModelView, ids: list[int], tokens: int) -> Float[np.ndarray, " token"]:
    """The loss of each of the last ``tokens`` ids, NaN of one with nothing before it."""
    with scoring(seen.model):
        logits = seen.forward(torch.tensor([ids]))
        assert logits is not None
        wanted = torch.tensor(ids[1:], device=logits.device)
        losses = torch.nn.functional.cross_entropy(logits[0, :-1].float(), wanted, reduction="none")
    return np.concatenate([[math.nan], losses.double().cpu().numpy()])[-tokens:]


def _note(seen: ModelView, patch: Patch) -> str:
    share = unreachable(seen.model, patch)
    if not share > 0:
        return ""
    low, _ = seen.act_range()
    return f"The model's activation function cannot give {share:.0%} of the values written: it gives {low:.3f} or more."
