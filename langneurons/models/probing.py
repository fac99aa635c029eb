"""Whether a wrapped model computes what the Hugging Face model does: whole texts, and step by step behind padding."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from jaxtyping import Float, Int

from langneurons.errors import ModelError, in_short
from langneurons.models import internals
from langneurons.models.backends.bridge import Bridge
from langneurons.models.backends.conversion import reason_against_hooked
from langneurons.models.checkpoints import context_length_of, sliding_window_of
from langneurons.models.model_view import ModelView
from langneurons.models.running import ForcedRows

# The largest difference allowed: 1e-5 standard deviations of the logits, or 4 times what one rounding step in the
# embeddings does to them, where that is more (deep models, 16-bit weights). Measured on 50 random models of 2 to 24
# layers, float32 and bfloat16: correct wrappings differ by 0 to 1.5 rounding steps, wrong ones by whole deviations.
_DEVIATIONS = 1e-5
_ROUNDING_STEPS = 4
_MOST_DEVIATIONS = 1.0
# Generation is compared on few tokens where a wide sliding window makes the text of the probe long.
_LONGEST_GENERATION, _SHORT_GENERATION = 256, 64
_PADDING, _STEPS = 3, 3


@dataclass(frozen=True)
class Probe:
    """What the Hugging Face model computes, and how exactly a wrapping of it must agree.

    Attributes:
        tokens: Token ids.
        logits: The Hugging Face model's logits.
        tolerance: The largest difference of a logit that rounding explains.
        backends: The backends that can hold the model.
    """

    tokens: Int[torch.Tensor, "1 position"]
    logits: Float[torch.Tensor, "1 position token"]
    tolerance: float
    backends: tuple[str, ...]

    def check(self, model_view: ModelView) -> None:
        """Compare a wrapped model's logits with the Hugging Face model's, and make sure that its sites fire.

        Args:
            model_view: The wrapped model.

        Raises:
            ModelError: If a logit differs by more than the tolerance.
            HookSiteError: If a site's hook does not fire exactly once a layer.
        """
        difference = _largest_difference(model_view.check_sites(self.tokens), self.logits)
        if not difference <= self.tolerance:
            others = [backend for backend in self.backends if backend != model_view.backend]
            raise ModelError(
                f"{model_view.name!r} loaded with backend {model_view.backend!r} computes other logits than the "
                f"Hugging Face model: they differ by {difference:.2g}, and rounding explains {self.tolerance:.2g}."
                + (f" Try backend={others[0]!r}." if others else "")
            )

    def check_generating(self, model_view: ModelView) -> None:
        """Compare the logits that a wrapped model generates from, of two prompts of which one is left-padded.

        Args:
            model_view: The wrapped model.

        Raises:
            ModelError: If a logit differs by more than the tolerance.
        """
        [text], [logits] = self.tokens, self.logits
        length = (len(text) if len(text) <= _LONGEST_GENERATION else _SHORT_GENERATION) - _STEPS
        padding = min(_PADDING, length - 1)
        if padding < 1:
            return
        starts = (length, length - padding)
        prompts = torch.stack([text[:length], torch.cat([text[:padding], text[: length - padding]])])
        mask = torch.ones_like(prompts)
        mask[1, :padding] = 0
        rows = ForcedRows(torch.stack([text[start : start + _STEPS] for start in starts]))
        model_view.runner.generate(prompts, mask, rows)
        expected = torch.stack([logits[start - 1 : start - 1 + _STEPS] for start in starts])
        difference = _largest_difference(torch.stack(rows.logits, dim=1), expected)
        if not difference <= self.tolerance:
            raise ModelError(f"its logits differ by {difference:.2g}, and rounding explains {self.tolerance:.2g}")


def _largest_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits.float() - expected.float()).abs().max())


def settle_attention(model_view: ModelView, probe: Probe, implementation: str | None) -> None:
    """Make sure that a wrapped model is right, and find out whether it is with faster layers too.

    Those of a HookedTransformer are fused. Those of a bridge are transformers' own attention, which then runs inside
    ``native_attention``, or always where TransformerLens' copy of it is wrong or does not run.

    Args:
        model_view: The wrapped model.
        probe: What it must compute.
        implementation: The attention that the Hugging Face model ran with, such as ``"sdpa"``.

    Raises:
        ModelError: If its logits are not those of the Hugging Face model.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    runner = model_view.runner
    fault = _fault(lambda: probe.check(model_view))
    if not isinstance(runner, Bridge):
        if fault is not None:
            raise fault
        runner.fuse(True)
        if _fault(lambda: probe.check(model_view)) is not None:
            runner.fuse(False)
        return
    if fault is None:
        runner.attention = implementation
        with model_view.native_attention():
            native_fault = _fault(lambda: probe.check(model_view))
        runner.attention = implementation if native_fault is None else None
        return
    runner.keep_native_attention(implementation)
    if _fault(lambda: probe.check(model_view)) is not None:
        raise fault


def settle_generation(model_view: ModelView, probe: Probe) -> None:
    """Find out how a wrapped model generates rightly: with a key-value cache, without one, or not at all.

    Args:
        model_view: The wrapped model, whose attention is settled.
        probe: What it must compute.
    """
    runner = model_view.runner
    _settle_generation(model_view, probe)
    if isinstance(runner, Bridge) and runner.attention is not None:
        with model_view.native_attention():
            _settle_generation(model_view, probe)


def _settle_generation(model_view: ModelView, probe: Probe) -> None:
    runner = model_view.runner
    fault = _fault(lambda: probe.check_generating(model_view))
    if fault is not None:
        runner.leave_out_cache() if isinstance(runner, Bridge) else runner.fuse(False)
        fault = _fault(lambda: probe.check_generating(model_view))
    if fault is not None:
        runner.generation_fault = in_short(fault) if not isinstance(fault, ModelError) else str(fault)


def _fault(check: Callable[[], None]) -> Exception | None:
    """Run a check; what TransformerLens wrote anew can break in every way there is."""
    try:
        with torch.no_grad():
            check()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return error
    return None


@torch.no_grad()
def probe_of(hf_model: "transformers.PreTrainedModel", name: str, merged: Iterable[str] = ()) -> Probe:
    """Run a Hugging Face model, before anything wraps it, as it is and with its embeddings one rounding step off.

    Args:
        hf_model: The model, in evaluation mode.
        name: The model's name.
        merged: Names of modules that compute at once what another model adds up: their outputs are one step off, too.

    Returns:
        Its logits, which a wrapping of it must compute.

    Raises:
        ModelError: If its logits are infinite or no numbers.
    """
    config = hf_model.config
    window = sliding_window_of(config)
    # From all over the vocabulary, and more than fit in a sliding window.
    length = min(context_length_of(config), 64 if window is None else window + 32)
    tokens = (torch.arange(length, device=hf_model.device) * 7919 + 13)[None] % config.get_text_config().vocab_size
    logits = hf_model(tokens, use_cache=False).logits
    rounded = [hf_model.get_input_embeddings(), *map(hf_model.get_submodule, merged)]
    with ExitStack() as stack:
        for module in rounded:
            stack.callback(module.register_forward_hook(_one_rounding_step_off).remove)
        off = hf_model(tokens, use_cache=False).logits
    deviation = float(logits.float().std())
    if not logits.isfinite().all():
        raise ModelError(
            f"{name!r} computes logits that are no numbers in {hf_model.dtype}: its weights are damaged, or overflow; "
            "try dtype='float32'."
        )
    rounding = _largest_difference(off, logits)
    if getattr(hf_model, "is_quantized", False):
        # A quantised matrix product jumps where its input crosses an edge, so that rounding now and then shows large.
        with internals.attention(hf_model, "eager"):  # step by step, as a bridge computes it
            eager = hf_model(tokens, use_cache=False).logits
        rounding = max(rounding, _largest_difference(eager, logits))
    allowed = max(_DEVIATIONS * deviation, _ROUNDING_STEPS * rounding)
    backends = ("bridge",) if reason_against_hooked(config) else ("bridge", "hooked")
    return Probe(tokens, logits, min(allowed, _MOST_DEVIATIONS * deviation), backends)


def _one_rounding_step_off(module: object, inputs: object, embeddings: torch.Tensor) -> torch.Tensor:
    """Change every other component up and the rest down, so that no normalisation undoes it."""
    step = torch.full(embeddings.shape[-1:], torch.finfo(embeddings.dtype).eps, device=embeddings.device)
    step[::2] *= -1
    return (embeddings.float() * (1 + step)).to(embeddings.dtype)
