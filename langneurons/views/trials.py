"""What the explorer computes: a ranking of neurons, and the effect of a patch on one text."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification import NeuronSet
from langneurons.identification.firing import check_sign_means_something
from langneurons.models import ModelView, view
from langneurons.patches.intervening import check_fits, patching, unreachable
from langneurons.patches.patch import Patch
from langneurons.recording.looking import activations
from langneurons.recording.statistics import ActivationStats
from langneurons.tasks.batching import scoring
from langneurons.tasks.completing import complete, prompt_ids
from langneurons.views.looks import FONT
from langneurons.views.style import TEMPLATES
from langneurons.views.tokens import coloured_text

ACTIVE, MAGNITUDE = "share active", "mean magnitude"


def response(stats: ActivationStats) -> tuple[str, Float[Tensor, "language layer neuron"]]:
    """Measure how much every neuron responds to every language, in a way that means something at the site.

    Returns:
        Name and values of the measure: the share of tokens with an activation above zero or, where the sign means
        nothing, the mean absolute activation.

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
        responses: Values that ``response`` returned.
        language: A label of the set.
        layer: A layer of the model.

    Returns:
        Columns layer, neuron, own (the response in the language), elsewhere (the largest in another), where (which one)
        and ahead (own - elsewhere); NaN for a label that was not recorded, which leaves the neurons in their order.

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
    others = pd.DataFrame(responses[:, layer, members].double().numpy(), index=list(languages))
    own = others.reindex([language]).iloc[0]
    others = others.drop(index=language, errors="ignore")
    elsewhere = others.max()
    where = others.idxmax() if len(others) else ""
    table = pd.DataFrame({"own": own, "elsewhere": elsewhere, "where": where, "ahead": own - elsewhere})
    table = table.assign(layer=layer, neuron=members.numpy()).sort_values("ahead", ascending=False, kind="stable")
    return table.reindex(columns=["layer", "neuron", "own", "elsewhere", "where", "ahead"]).reset_index(drop=True)


NEW_TOKENS = 20
ENDED = "(the model ends the text here)"
CAUTION = "This is one text; ln.ablate() measures the effect on a corpus, with interval and controls."


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """What a patch did to one text.

    Attributes:
        about: The patch in words.
        tokens: One row per token: token, its loss unpatched and patched (nats; NaN where nothing comes before it).
        unpatched: The model's continuation of the text.
        patched: Its continuation with the patch.
        note: A warning, or "".
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
        if not len(losses):
            return f"{self.about}: the text is one token, which nothing predicts."
        before, after = losses.mean(0).tolist()
        return (
            f"{self.about}: the loss of this text goes from {before:.3f} to {after:.3f} nats per token "
            f"({100 * (after / before - 1):+.2f} %, {len(losses)} tokens)."
        )

    def __repr__(self) -> str:
        unpatched, patched = (
            f"Unpatched it goes on: {self.unpatched or ENDED}",
            f"Patched it goes on: {self.patched or ENDED}",
        )
        return "\n".join(filter(None, [self.sentence, self.note, unpatched, patched, CAUTION]))

    def _repr_html_(self) -> Markup:
        change = (self.tokens["patched"] - self.tokens["unpatched"]).tolist()
        tokens = coloured_text(self.tokens["token"].tolist(), change)
        page = TEMPLATES.get_template("trial.html.jinja")
        return Markup(page.render(trial=self, tokens=tokens, font=FONT, ended=ENDED, caution=CAUTION))  # noqa: S704


def try_out(model: torch.nn.Module, patch: Patch, text: str, about: str, new_tokens: int = NEW_TOKENS) -> Trial:
    """Read a text and continue it, without and with a patch.

    Args:
        model: A model returned by ``load_model``.
        patch: The patch to try.
        text: Text that leaves room in the model's context for the new tokens.
        about: The patch in words.
        new_tokens: Tokens to continue the text by, greedily.

    Returns:
        Losses and continuations of both.

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
    model_view = view(model)
    check_fits(patch, model_view)
    pieces = activations(model, text, patch.neurons).index.get_level_values("token").tolist()
    ids = prompt_ids(model_view.tokenizer, text)  # pyright: ignore[reportArgumentType]: activations asked for a tokenizer
    plain, unpatched = complete(model, [ids], new_tokens, ())[0].text, _losses(model_view, ids, len(pieces))
    with patching(model_view, [patch]):
        changed, patched = complete(model, [ids], new_tokens, ())[0].text, _losses(model_view, ids, len(pieces))
    table = pd.DataFrame({"token": pieces, "unpatched": unpatched, "patched": patched})
    return Trial(about, table, plain, changed, _note(model_view, patch))


def _losses(model_view: ModelView, ids: list[int], tokens: int) -> Float[np.ndarray, " token"]:
    """The loss of each of the last ``tokens`` ids, NaN where nothing comes before."""
    with scoring(model_view.model):
        text = torch.tensor([ids])
        follows = torch.arange(len(ids))[None] > 0
        losses = model_view.predictions(text, follows).losses(text[follows])
    return np.concatenate([[math.nan], losses.double().cpu().numpy()])[-tokens:]


def _note(model_view: ModelView, patch: Patch) -> str:
    share = unreachable(model_view.model, patch)
    if not share > 0:
        return ""
    low, _ = model_view.act_range()
    return f"The activation function cannot reach {share:.0%} of the values written: its smallest value is {low:.3f}."
