"""The check at load: one forward that shows whether a wrapped model computes what the Hugging Face model computes."""

from dataclasses import dataclass

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from jaxtyping import Float, Int
from transformers import PretrainedConfig

from langneurons.errors import ModelError
from langneurons.models.backends.hooked import context_length_of, sliding_window_of

# The largest difference allowed: 1e-5 standard deviations of the logits, or 4 times what one rounding step in the
# embeddings does to them, where that is more (deep models, 16-bit weights). Measured on 50 random models of 2 to 24
# layers, float32 and bfloat16: correct wrappings differ by 0 to 1.5 rounding steps, wrong ones by whole deviations.
_DEVIATIONS = 1e-5
_ROUNDING_STEPS = 4
_MOST_DEVIATIONS = 1.0


@dataclass(frozen=True)
class Probe:
    """What the Hugging Face model computes, and how exactly a wrapping of it must agree.

    Attributes:
        tokens: Token ids.
        logits: The Hugging Face model's logits.
        tolerance: The largest difference of a logit that rounding explains.
    """

    tokens: Int[torch.Tensor, "1 position"]
    logits: Float[torch.Tensor, "1 position token"]
    tolerance: float

    def check(self, logits: Float[torch.Tensor, "1 position token"], name: str, backend: str) -> None:
        """Compare a wrapped model's logits with the Hugging Face model's.

        Args:
            logits: Of the wrapped model, on the same tokens.
            name: What the model is called.
            backend: How it was wrapped.

        Raises:
            ModelError: If a logit differs by more than the tolerance.
        """
        difference = float((logits.float() - self.logits.float()).abs().max())
        if not difference <= self.tolerance:
            other = "bridge" if backend == "hooked" else "hooked"
            raise ModelError(
                f"{name!r} loaded with backend {backend!r} computes other logits than the Hugging Face model: they "
                f"differ by {difference:.2g}, and rounding explains {self.tolerance:.2g}. Try backend={other!r}."
            )


def probe_tokens(config: PretrainedConfig) -> Int[torch.Tensor, "1 position"]:
    """Choose tokens to compare on: 64, or more than fit in a sliding window, from all over the vocabulary.

    Args:
        config: The model's configuration.

    Returns:
        Token ids, the same for the same configuration.
    """
    window = sliding_window_of(config)
    length = min(context_length_of(config), 64 if window is None else window + 32)
    return (torch.arange(length) * 7919 + 13)[None] % config.get_text_config().vocab_size


@torch.no_grad()
def probe_of(hf_model: "transformers.PreTrainedModel") -> Probe:
    """Run a Hugging Face model, before anything wraps it, as it is and with its embeddings one rounding step off.

    Args:
        hf_model: The model, in evaluation mode.

    Returns:
        What a wrapping of it must compute.

    Raises:
        ModelError: If its logits are infinite or no numbers.
    """
    tokens = probe_tokens(hf_model.config).to(hf_model.device)
    logits = hf_model(tokens, use_cache=False).logits
    handle = hf_model.get_input_embeddings().register_forward_hook(_one_rounding_step_off)
    try:
        off = hf_model(tokens, use_cache=False).logits
    finally:
        handle.remove()
    deviation = float(logits.float().std())
    if not logits.isfinite().all():
        raise ModelError(
            f"{hf_model.name_or_path or 'The model'!r} computes logits that are no numbers in {hf_model.dtype}: its "
            "weights are damaged, or overflow; try dtype='float32'."
        )
    rounding = float((off.float() - logits.float()).abs().max())
    if getattr(hf_model, "is_quantized", False):
        # A quantised matrix product jumps where its input crosses an edge, so that rounding now and then shows large.
        rounding = max(rounding, float((_eager_logits(hf_model, tokens).float() - logits.float()).abs().max()))
    allowed = max(_DEVIATIONS * deviation, _ROUNDING_STEPS * rounding)
    return Probe(tokens, logits, min(allowed, _MOST_DEVIATIONS * deviation))


def _eager_logits(hf_model: "transformers.PreTrainedModel", tokens: torch.Tensor) -> torch.Tensor:
    """The logits with attention computed step by step, as a bridge computes it."""
    usual = str(hf_model.config._attn_implementation)
    hf_model.set_attn_implementation("eager")
    try:
        return hf_model(tokens, use_cache=False).logits
    finally:
        hf_model.set_attn_implementation(usual)


def _one_rounding_step_off(module: object, inputs: object, embeddings: torch.Tensor) -> torch.Tensor:
    """Change every other component up and the rest down, so that no normalisation undoes it."""
    step = torch.full(embeddings.shape[-1:], torch.finfo(embeddings.dtype).eps, device=embeddings.device)
    step[::2] *= -1
    return (embeddings.float() * (1 + step)).to(embeddings.dtype)
