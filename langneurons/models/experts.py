"""Experts as units: the probability that a router gives each of them, which it chooses, and writing either.

A router is a module that returns logits, weights and indices, as transformers 5 has it for Mixtral, Qwen3-MoE, OLMoE,
GPT-OSS and their like. Nothing of it is copied: new logits take the place of its matrix product, and its own code
goes on from there, so that weights are made, and experts chosen, as the architecture does it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from langneurons.errors import HookSiteError, ModelError
from langneurons.models.internals import HookPoint, replaced, routers_in
from langneurons.models.sites import Change, Hook, Layer, Reader, attached, written

ROUTER, LOGITS = ROUTER_SITES = ("router", "router_logits")
CHOSEN = "chosen"  # no site, but read beside one: which experts are among the top k

_TRIED = 16  # states that a router is tried with
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUNDING_16 = 2e-2
_TOPK = (torch.topk, torch.Tensor.topk)


@dataclass(eq=False)
class Router:
    """A layer's router, with the interface of a hook point whose values are its logits, weights and indices.

    Attributes:
        layer: The layer.
        module: The module of the Hugging Face model.
        independent: Whether experts are scored one by one, by a sigmoid, and not all together, by a softmax.
        width: Number of its experts.
        top_k: Number of experts that it chooses for a token.
    """

    layer: Layer
    module: nn.Module
    independent: bool = False
    width: int = 0
    top_k: int = 0
    name: str | None = ROUTER
    fwd_hooks: list[Any] = field(default_factory=list)
    batch_size: int = 1
    writes: list[Hook] = field(default_factory=list)
    _installed: ExitStack = field(default_factory=ExitStack)

    def add_hook(self, hook: Callable[..., object]) -> None:
        """Call a function of (logits, weights and indices, hook=) whenever the router has run."""
        handle = self.module.register_forward_hook(lambda module, inputs, output: hook(output, hook=self))
        self.fwd_hooks.append(SimpleNamespace(hook=handle))

    def shaped(self, values: torch.Tensor) -> Shaped[torch.Tensor, "batch position expert"]:
        """View what the router gives, which sees batch and position as one axis, with both apart."""
        return values.reshape(self.batch_size, -1, values.shape[-1])

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The routing probability of each expert: softmax of the logits, or the sigmoid of each."""
        return logits.float().sigmoid() if self.independent else logits.float().softmax(-1)

    def read(self, part: str, output: tuple[torch.Tensor, ...]) -> Shaped[torch.Tensor, "batch position expert"]:
        """What was asked for of the router's output: probabilities, logits, or which experts are chosen."""
        logits, _, indices = output
        if part == LOGITS:
            return self.shaped(logits)
        if part == ROUTER:
            return self.shaped(self.probabilities(logits))
        return self.shaped(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices.long(), True))

    def batch_hook(self) -> tuple[HookPoint, Hook]:
        """Remember the number of rows of the running forward."""
        return self.layer.input_point, self.remember_batch

    def remember_batch(self, values: torch.Tensor) -> None:
        """Take the number of rows from the layer's input."""
        self.batch_size = values.shape[0]

    @contextmanager
    def writing(self, write: Hook) -> Iterator[None]:
        """Let a function of the logits, "batch position expert", give new ones inside the block."""
        if not self.writes:
            self._installed.enter_context(replaced([(self.module, "forward", self._rewritten(self.module.forward))]))
        self.writes.append(write)
        try:
            yield
        finally:
            self.writes.remove(write)
            if not self.writes:
                self._installed.close()

    def _rewritten(self, forward: Callable[..., object]) -> Callable[..., object]:
        def run(*inputs: object, **options: object) -> object:
            with _Rewriting(self):
                return forward(*inputs, **options)

        return run

    def written(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits after every function that writes."""
        shaped = self.shaped(logits)
        for write in self.writes:
            new = write(shaped)
            assert new is not None
            shaped = new
        return shaped.reshape(logits.shape)

    def towards(
        self, logits: torch.Tensor, index: Int[torch.Tensor, " unit"], change: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The logits that give some experts other probabilities; all others keep theirs in proportion."""
        before = self.probabilities(logits)
        current = before.index_select(-1, index)
        new = change(current).float().expand_as(current).clamp(0, 1)
        least = torch.finfo(torch.float32).tiny
        if self.independent:
            moved = torch.logit(new, eps=torch.finfo(torch.float32).eps)
        else:
            rest = logits.float().index_fill(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
            rest = torch.where(rest.isfinite(), rest, 0.0)  # no expert keeps its own: any sum will do
            left = (1 - new.sum(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).eps)
            moved = new.clamp(min=least).log() - left.log() + rest
        own = logits.index_select(-1, index).float()
        difference = moved - own
        # Where nothing was changed nothing is added, not even rounding, and gradients still flow.
        difference = torch.where(new == current, difference - difference.detach(), difference)
        return written(logits, index, (own + difference).masked_fill((new == 0) & (current > 0), -torch.inf))


class _Rewriting(TorchFunctionMode):
    """Puts new logits in place of the first product of a router, and keeps those of -inf out of its choice."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router, self._waits = router, True
        self._excluded: Bool[torch.Tensor, "token expert"] | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run what the router calls, the product with other logits and the choice among fewer experts."""
        if function in _TOPK and self._excluded is not None and args[0].shape[-1] == self._router.width:
            args = (args[0].masked_fill(self._excluded.reshape(args[0].shape), -torch.inf), *args[1:])
        out = function(*args, **(kwargs or {}))
        if function is functional.linear and self._waits and out.shape[-1] == self._router.width:
            self._waits, out = False, self._router.written(out)
            self._exclude(out == -torch.inf)
        return out

    def _exclude(self, excluded: Bool[torch.Tensor, "token expert"]) -> None:
        most, router = int(excluded.sum(-1).amax()), self._router
        if most > router.width - router.top_k:
            raise HookSiteError(
                f"Layer {router.layer.index} chooses {router.top_k} of its {router.width} experts for every token, so "
                f"{most} of them cannot all be left out: leave at least {router.top_k}."
            )
        self._excluded = excluded if most else None


@dataclass(frozen=True, eq=False)
class RouterSite:
    """The routers of a model as one site; its layers are those that have experts, from the bottom up.

    Attributes:
        name: ``"router"``, where values are routing probabilities, or ``"router_logits"``.
        placed: Each router.
    """

    name: str
    placed: tuple[Router, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's layer of each router."""
        return tuple(router.layer.index for router in self.placed)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of routers, and of experts that each of them has."""
        return len(self.placed), self.placed[0].width

    @contextmanager
    def reading(self, reader: Reader, part: str | None = None) -> Iterator[None]:
        """Hand a function of (row, values) each layer's values, or which experts are chosen, in every forward inside.

        What patches wrote is read whichever was entered first.
        """
        hooks = [(router, partial(self._report, reader, part, row)) for row, router in enumerate(self.placed)]
        with attached(_with_batch(hooks)):
            yield

    def _report(self, reader: Reader, part: str | None, row: int, output: Any) -> None:
        reader(row, self.placed[row].read(part or self.name, output))

    @contextmanager
    def writing(self, experts: Mapping[int, Int[torch.Tensor, " unit"]], change: Change) -> Iterator[None]:
        """Write new values of some experts, by row, during every forward inside the block."""

        def write(row: int, units: torch.Tensor) -> Hook:
            def hook(logits: torch.Tensor) -> torch.Tensor:
                index = units.to(logits.device)
                if self.name == ROUTER:
                    return self.placed[row].towards(logits, index, lambda current: change(row, current))
                return written(logits, index, change(row, logits.index_select(-1, index)))

            return hook

        with ExitStack() as stack:
            stack.enter_context(attached([self.placed[row].batch_hook() for row in experts]))
            for row, units in experts.items():
                stack.enter_context(self.placed[row].writing(write(row, units)))
            yield

    def output_norm(self) -> Float[torch.Tensor, "layer unit"]:
        """How strongly each expert can write: all alike, because what it writes is not a direction of its own."""
        return torch.ones(self.shape)


def _with_batch(hooks: Sequence[tuple[Router, Hook]]) -> list[tuple[HookPoint, Hook]]:
    return [pair for router, hook in hooks for pair in (router.batch_hook(), (router, hook))]


def router_sites(layers: Sequence[Layer], d_model: int, name: str) -> dict[str, RouterSite]:
    """Make the sites of a model's routers.

    Args:
        layers: The model's layers.
        d_model: What a router reads, in numbers a token.
        name: The model's name.

    Returns:
        Site by name; nothing where no layer has experts.

    Raises:
        ModelError: If a router has another form than logits, weights and indices.
    """
    routers = [Router(layer, layer.router) for layer in layers if layer.router is not None]
    for router in routers:
        _examine(router, d_model, name)
    if len(widths := {router.width for router in routers}) > 1:
        raise ModelError(f"Layers of {name!r} have different numbers of experts: {sorted(widths)}.")
    return {site: RouterSite(site, tuple(routers)) for site in ROUTER_SITES if routers}


@torch.no_grad()
def _examine(router: Router, d_model: int, name: str) -> None:
    """Try a router on a few states: find its number of experts, how it scores them, and that it can be written."""
    weight = next(router.module.parameters())
    states = torch.randn(_TRIED, d_model, generator=torch.Generator().manual_seed(0)).to(weight)
    output = output_of(router.module, states, name)
    logits, weights, indices = output
    router.width, router.top_k = logits.shape[-1], indices.shape[-1]
    if weight.is_meta:
        return
    scales = [independent for independent in (False, True) if _explains(independent, logits, weights, indices)]
    if not scales:
        raise other_form(name, "its weights are neither a softmax nor a sigmoid of its logits")
    router.independent = scales[0]
    best, everyone = indices[:, 0].long(), torch.arange(router.width, device=logits.device)

    def without_best(current: torch.Tensor) -> torch.Tensor:
        return current.masked_fill(everyone == best.view(1, -1, 1), 0.0)

    if router.width <= router.top_k:
        return
    with router.writing(lambda shaped: router.towards(shaped, everyone, without_best)):
        _, _, others = router.module(states)
    if bool((others == best[:, None]).any()):
        raise other_form(name, "it does not choose by the product of a matrix")


def check_routers(hf_model: nn.Module, name: str) -> None:
    """Refuse a Hugging Face model with experts whose routers have another form; its weights may be without storage.

    Args:
        hf_model: The model, before anything wraps it.
        name: Its name.

    Raises:
        ModelError: If there is no router beside experts, or it has another form.
    """
    routers = routers_in(hf_model)
    if not routers or None in routers:
        raise other_form(name, "none stands beside its experts")
    module = routers[0]
    weight = next(module.parameters())
    if weight.ndim == 2:
        output_of(module, torch.zeros(_TRIED, weight.shape[1], device=weight.device, dtype=weight.dtype), name)


def output_of(
    module: nn.Module, states: Float[torch.Tensor, "token d_model"], name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a router gives for some states, if it has the form that is read here.

    Args:
        module: The module, also without storage.
        states: What it reads.
        name: The model's name.

    Returns:
        Logits, "token expert"; weights and indices, "token chosen".

    Raises:
        ModelError: If it gives anything else.
    """
    try:
        output = module(states)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise other_form(name, "it reads more than the residual stream") from error
    if not isinstance(output, tuple) or len(output) != 3 or not all(isinstance(part, torch.Tensor) for part in output):
        raise other_form(name, f"it returns {_in_words(output)}")
    logits, weights, indices = output
    fits = logits.shape[:-1] == indices.shape[:-1] and weights.shape == indices.shape
    if not fits or logits.shape[0] != len(states) or indices.is_floating_point() or not logits.is_floating_point():
        raise other_form(name, f"it returns tensors of {', '.join(str(tuple(part.shape)) for part in output)}")
    return output


def _explains(independent: bool, logits: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> bool:
    """Whether weights are, up to a factor, the sigmoid or the softmax of the logits of the chosen experts."""
    scores = logits.float().sigmoid() if independent else logits.float().softmax(-1)
    scores, weights = scores.gather(-1, indices.long()), weights.float()
    axis = 0 if weights.shape[-1] == 1 and bool((weights != weights[:1]).any()) else -1
    apart = weights / weights.sum(axis, keepdim=True) - scores / scores.sum(axis, keepdim=True)
    return bool(apart.abs().amax() <= _ROUNDING.get(logits.dtype, _ROUNDING_16))


def _in_words(output: object) -> str:
    parts = output if isinstance(output, tuple) else (output,)
    kinds = ["None" if part is None else type(part).__name__ for part in parts]
    return f"{len(kinds)} values ({', '.join(kinds)})" if len(kinds) > 1 else f"a {kinds[0]}"


def other_form(name: str, what: str) -> ModelError:
    """The error of a router that is not read."""
    return ModelError(
        f"{name!r} is a mixture of experts whose router has another form: {what}; read are routers that give logits, "
        "weights and indices, such as those of Mixtral, Qwen3-MoE, OLMoE and GPT-OSS."
    )
