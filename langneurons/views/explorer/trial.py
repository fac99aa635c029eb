"""Trying a patch on one text: what it does to the loss of every token, and to how the model goes on."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from markupsafe import Markup

from langneurons.evaluation.scoring import scoring
from langneurons.evaluation.tasks.completing import complete, prompt_ids
from langneurons.models import ModelView, view
from langneurons.patches.intervening import check_fits, patching, unreachable
from langneurons.patches.patch import Patch
from langneurons.recording.looking import activations
from langneurons.views.style import FONT
from langneurons.views.tokens import coloured_text

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
        >>> trial = try_out(model, ln.Set(neurons, 0.0), "The boy drinks water.", "neuron 10 of layer 7 set to 0")
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
