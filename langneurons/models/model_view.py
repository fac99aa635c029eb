"""One vocabulary over HookedTransformer and TransformerBridge, whoever loaded them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedTokenizerBase

from langneurons.errors import HookSiteError, ModelError, unknown
from langneurons.models import running, sites
from langneurons.models.backends import backend_of, layers_of
from langneurons.models.experts import CHOSEN, ROUTER, RouterSite, router_sites
from langneurons.models.feature_sites import FeatureSite
from langneurons.models.internals import count_hooks, listens
from langneurons.models.projections import Projection, check_target
from langneurons.models.sites import LINEAR_SITES, OF_MLP, SITES, Change, Layer, Reader
from langneurons.models.weights import Weights
from langneurons.storage import fingerprint

_VIEW = "_langneurons_view"


def view(model: object) -> "ModelView":
    """See a model through one vocabulary; the view is made once and lives as long as the model.

    Args:
        model: A HookedTransformer or TransformerBridge, from load_model or from TransformerLens.

    Returns:
        The model's view.

    Raises:
        ModelError: If it is neither, or a private part of TransformerLens or transformers has moved.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    model_view = getattr(model, "__dict__", {}).get(_VIEW)
    if model_view is None:
        model_view = ModelView(model)
        model_view.check_sites(torch.arange(min(4, model_view.context_length), device=model_view.device)[None])
    return model_view


class ModelView:
    """What every room needs of a model: its shape, its forward, and reading and writing its neurons.

    Attributes:
        model: The TransformerLens object.
        tokenizer: Its tokenizer as the checkpoint has it, or None.
        name: The model's name.
        backend: ``"hooked"`` or ``"bridge"``.
        runner: How that backend runs.
        end_ids: The ids that end what it generates.
        n_layers: The number of its layers.
        context_length: The longest text it takes, in tokens.
        gated: Whether its MLP multiplies act by up, so that ``act`` and ``post`` differ.
        act_fn_name: Its activation function, as the checkpoint's configuration names it.
        weights: Which weights it has: their fingerprint, and what it was before updates were merged.
        feature_sites: The sites that dictionaries were added as, by name.
        routers: The sites ``router`` and ``router_logits`` of a mixture of experts, by name.
        loaded_as: The arguments of ``load_model`` that load it again elsewhere; None where it was given as an object.
    """

    def __init__(self, model: object, tokenizer: PreTrainedTokenizerBase | None = None, name: str | None = None):
        self.runner = backend_of(model)
        self.model = self.runner.model
        self.backend = self.runner.name
        self.tokenizer = tokenizer if tokenizer is not None else self.model.tokenizer
        eos = None if self.tokenizer is None else cast(int | None, self.tokenizer.eos_token_id)
        self.end_ids: tuple[int, ...] = (*([] if eos is None else [eos]), *self.runner.end_ids)
        self.name: str = name or self.model.cfg.model_name
        self.n_layers: int = self.model.cfg.n_layers
        self.context_length: int = self.model.cfg.n_ctx
        self._layers = layers_of(self.runner, self.name)
        self.gated = self._layers[0].gated
        self.routers = router_sites(self._layers, self.model.cfg.d_model, self.name)
        self.act_fn_name = self.runner.act_fn_name
        self.weights = Weights(self.model)
        self.feature_sites: dict[str, FeatureSite] = {}
        self.loaded_as: dict[str, Any] | None = None
        self._widths: dict[str, int] = {}
        self._unembeds = False
        self._checkpointing = running.Checkpointing()
        self._act_range: tuple[float, float] | None = None
        self._projections: dict[tuple[int, str], Projection] = {}
        # TransformerLens 4 attaches hooks of its own to some bridges (OPT), for good.
        self._own_hooks = count_hooks(self.model, permanent=True)
        vars(self.model)[_VIEW] = self

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it has, those that belong together in the order in which a layer computes them."""
        return (*(site for site in SITES if site in self._widths), *self.routers, *self.feature_sites)

    @property
    def _own_sites(self) -> tuple[str, ...]:
        """The sites that its layers may have."""
        without_mlp = self._layers[0].mlp is None
        return tuple(site for site in SITES if not (without_mlp and site in OF_MLP))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where tokens go."""
        return next(self.model.parameters()).device

    def shape(self, site: str) -> tuple[int, int]:
        """Count a site's layers and units per layer: as many layers as dictionaries, or as have experts."""
        features = self._features(site)
        return (self.n_layers, self._widths[site]) if features is None else features.shape

    def width(self, site: str) -> int:
        """Count a layer's units at a site: neurons, heads, coordinates; as read from the site's tensor."""
        return self.shape(site)[1]

    def layer(self, index: int) -> Layer:
        """Find a layer and its hook points.

        Raises:
            HookSiteError: If there is no such layer.
        """
        if not 0 <= index < self.n_layers:
            raise HookSiteError(f"{self.name!r} has no layer {index}: its layers are 0 to {self.n_layers - 1}.")
        return self._layers[index]

    def layers_at(self, site: str) -> tuple[int, ...]:
        """Find the model's layer of each layer of a site."""
        features = self._features(site)
        return tuple(range(self.n_layers)) if features is None else features.layers

    def _features(self, site: str) -> FeatureSite | RouterSite | None:
        """The dictionaries or routers of a site, None for neurons; sites that the model lacks are refused."""
        if site in self.sites:
            return self.feature_sites.get(site) or self.routers.get(site)
        if self.routers and site in OF_MLP:
            raise HookSiteError(
                f"{self.name!r} has no site {site!r}, because its layers have no MLP of one width that every token "
                "runs, and transformers multiplies the matrices of all experts at once, where no hook sees a neuron. "
                f"Possible: {', '.join(self.sites)}."
            )
        if site in LINEAR_SITES:
            raise HookSiteError(sites.why_missing(self.name, site))
        raise HookSiteError(unknown("site", site, self.sites))

    @property
    def fingerprint(self) -> str:
        """Which weights it has; equal for both backends loaded through load_model from the same weights and dtype."""
        return self.weights.fingerprint

    @property
    def described(self) -> str:
        """Its name, the beginning of its fingerprint, and its backend, as results name it."""
        return f"{self.name} ({self.fingerprint[:8]}, {self.backend})"

    def fingerprint_at(self, site: str) -> str:
        """Which weights, and at a site of features also which dictionaries, its values come from."""
        features = self._features(site)
        return (
            fingerprint(self.fingerprint, features.fingerprint)
            if isinstance(features, FeatureSite)
            else self.fingerprint
        )

    def output_weights(self, layer: int, site: str) -> Float[torch.Tensor, "unit d_model"]:
        """Find what a layer's units write to the residual stream: W_out, or a head's W_O with its d_head rows in turn.

        Args:
            layer: The layer.
            site: Any site of the MLP, or ``head``.
        """
        return self._layers[layer].output_weights(site)

    def output_norm(self, site: str) -> Float[torch.Tensor, "layer unit"]:
        """Measure how strongly each neuron can write: the norm of its row of W_out, of a head's block of W_O.

        Args:
            site: Any site; those of the MLP share W_out, a coordinate of the residual stream writes itself, one of v
                writes the rows of W_O of all heads that read it, and one of q or k, which writes nothing, counts as 1.

        Returns:
            Norms in float32, on CPU.
        """
        if (features := self._features(site)) is not None:
            return features.output_norm()
        return torch.stack([layer.output_norm(site, self.width(site)) for layer in self._layers])

    def projection(self, layer: int, target: str) -> Projection:
        """Find a matrix of a layer that can be trained: gate, up, down, q, k, v or o.

        Args:
            layer: The layer.
            target: The matrix's name.

        Raises:
            TrainingError: If the model has no such projection, or it cannot be reached.
        """
        check_target(target, self.gated)
        if (layer, target) not in self._projections:
            self._projections[layer, target] = self.runner.projection(self.gated, layer, target)
        return self._projections[layer, target]

    def forward(
        self,
        tokens: Int[torch.Tensor, "batch position"],
        attention_mask: Int[torch.Tensor, "batch position"] | None = None,
        logits: bool = True,
    ) -> Float[torch.Tensor, "batch position token"] | None:
        """Run the model.

        Args:
            tokens: Token ids, special tokens included.
            attention_mask: 1 for real tokens, 0 for padding; None where every token is real or padding is on the right.
            logits: Whether to return logits; otherwise the unembedding is skipped and None returned.
        """
        return self.runner.forward(self._placed(tokens), attention_mask, logits)

    def _placed(self, tokens: Int[torch.Tensor, "batch position"]) -> Int[torch.Tensor, "batch position"]:
        running.check_tokens(tokens, self.runner.embedding, self.name)
        return tokens.to(self.device)

    def hidden(
        self,
        tokens: Int[torch.Tensor, "batch position"],
        attention_mask: Int[torch.Tensor, "batch position"] | None = None,
    ) -> Float[torch.Tensor, "batch position d_model"]:
        """Run the model up to what its unembedding reads: the residual stream after the final norm.

        Args:
            tokens: Token ids, special tokens included, padding on the right.
            attention_mask: 0 for what no position attends to; None hides nothing. Padding is read like any other
                position, numbered on from the text, as transformers does.
        """
        return self.runner.hidden(self._placed(tokens), attention_mask)

    def logits_at(
        self, tokens: Int[torch.Tensor, "batch position"], positions: Sequence[int]
    ) -> Float[torch.Tensor, "batch chosen token"]:
        """Run the model and unembed some positions only: all of them would fill the memory for a large vocabulary.

        Args:
            tokens: Token ids, special tokens included, padding on the right.
            positions: The positions to unembed.
        """
        states, unembed = self._states(tokens)
        states = states[:, torch.tensor(list(positions), device=states.device)]
        return states if unembed is None else unembed(states)

    def predictions(
        self, tokens: Int[torch.Tensor, "batch position"], counted: Bool[torch.Tensor, "batch predicted"]
    ) -> running.Predictions:
        """Run the model, and give what it predicts in place of some tokens, without unembedding the other positions.

        Args:
            tokens: Token ids, special tokens included, padding on the right.
            counted: Tokens that are predicted, none the first of its row; perhaps the one that follows the last.
        """
        return self._predictions(*self._states(tokens), counted)

    def branching(self, tokens: Int[torch.Tensor, "row position"]) -> running.Branching | None:
        """Run what several texts begin with, once, and keep what attention needs of it.

        Args:
            tokens: Token ids, special tokens included, without padding.

        Returns:
            Function that runs what follows: from its tokens ("branch step", padding on the right), the row that each
            branch goes on from, and the tokens that are predicted ("branch predicted", none the first of a branch), to
            what is predicted. None where the model has no key-value cache that is right, or makes its logits of more
            than its last states.
        """
        if not self._unembeds or listens(self.model.unembed):
            return None
        after = self.runner.branching(self._placed(tokens))
        if after is None:
            return None

        def predictions(
            tokens: torch.Tensor, rows: Sequence[int], counted: Bool[torch.Tensor, "branch predicted"]
        ) -> running.Predictions:
            states = after(self._placed(tokens), torch.tensor(list(rows), device=self.device))
            return self._predictions(states, self.runner.unembed, counted)

        return predictions

    def _predictions(
        self, states: torch.Tensor, unembed: running.Unembed | None, counted: torch.Tensor
    ) -> running.Predictions:
        """What is predicted in place of some tokens, each from the state before it."""
        row, position = counted.nonzero(as_tuple=True)
        at = states[row.to(states.device), (position - 1).to(states.device)]
        return running.Predictions(at, unembed, self.model.cfg.d_vocab)

    def _states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, running.Unembed | None]:
        """What the unembedding reads, and the unembedding; or the logits where those do not give them."""
        if self._unembeds and not listens(self.model.unembed):
            return self.hidden(tokens), self.runner.unembed
        return cast(torch.Tensor, self.forward(tokens)), None

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[torch.Tensor, "row position"],
        attention_mask: Int[torch.Tensor, "row position"],
        max_new_tokens: int,
        stop: running.Stop | None = None,
        ends: Collection[int] = (),
        min_new_tokens: int = 0,
        draw: running.Draw | None = None,
    ) -> list[list[int]]:
        """Generate, with a key-value cache where the probe at load found it right; hooks see every step.

        Args:
            tokens: Left-padded prompts; with the padding and the new tokens they must fit in the context.
            attention_mask: 0 for padding, 1 for real tokens.
            max_new_tokens: Maximum number of tokens that a row generates.
            stop: Whether a row ends with the ids it has generated so far.
            ends: Ids each of which ends a row.
            min_new_tokens: Tokens that a row generates before one of those may be chosen.
            draw: Draws the next token of every row from its logits; by default the likeliest is taken.

        Returns:
            The ids that each row generated, up to and with what ended it.

        Raises:
            ModelError: If the probe at load found that the model generates from other logits than it should.
        """
        if self.runner.generation_fault:
            raise ModelError(f"{self.name!r} cannot generate with this backend: {self.runner.generation_fault}.")
        rows = running.GeneratedRows(len(tokens), max_new_tokens, stop, ends, min_new_tokens, draw)
        self.runner.generate(self._placed(tokens), attention_mask.to(self.device), rows)
        return rows.ids

    def following(self) -> AbstractContextManager[running.Following]:
        """Tell, inside the block, which positions of the running forward are prompt and which are generated.

        A forward is all prompt unless this view, the model, or the Hugging Face model in a bridge generates.
        """
        return running.following([self, *self.runner.generators], self._layers[0].input_point)

    def above(self, layer: int, residual_of: running.ResidualOf) -> AbstractContextManager[None]:
        """Run only the layers above one, inside the block, from a residual stream that was computed before.

        Whatever runs the model counts, such as scoring a text; positions and masks are those of the whole forward, and
        sites above the layer are read and written as ever, those up to it not at all.

        Args:
            layer: The last layer that is not run; -1 runs all.
            residual_of: From a forward's tokens, "batch position", to the residual stream after the layer, "batch
                position d_model"; None for tokens that shall be run whole.

        Raises:
            HookSiteError: If there is no such layer.
        """
        if layer != -1:
            self.layer(layer)
        return running.resumed_above(self.model.blocks, self.runner.embedding, layer, residual_of)

    def gradient_checkpointing(self) -> AbstractContextManager[None]:
        """Keep only each layer's input for a backward pass, inside the block, and run the layer again there.

        Gradients stay the same; memory shrinks, for the time of another forward. Patches are written in both runs of a
        layer; ``reading`` still hands on every tensor once.
        """
        return self._checkpointing.of(self.model.blocks, self.runner.hf_config)

    def without_gradients(self, below: int) -> AbstractContextManager[None]:
        """Record no gradients in the layers below one, inside the block.

        Nothing is kept of them for a backward pass, and they run as fast as without training.

        Args:
            below: The first layer that records gradients.
        """
        return running.without_gradients(self.model.blocks[:below])

    @contextmanager
    def native_attention(self) -> Iterator[None]:
        """Run a bridge's attention in transformers' own way inside the block, about as fast as the plain model.

        Every site is read and written as ever; ``hook_pattern`` and ``hook_attn_scores`` stay silent. Nothing changes
        for a HookedTransformer, nor for a bridge that failed the check of this at load or was loaded elsewhere.
        """
        with self.weights.held(), self.runner.native_attention():
            yield

    @contextmanager
    def reading(self, readers: Mapping[str, Reader]) -> Iterator[None]:
        """Hand each site's tensor to a function, once a layer, during every forward inside the block.

        ``head`` is "batch position head d_head", every other site "batch position neuron". Values that a ``writing``
        entered before wrote are read, but for ``act`` on gated MLPs: it is computed from the pre-activation, so values
        written there show only at ``post``.

        Args:
            readers: From site to a function of (layer index, values); what it returns is ignored. Of a mixture of
                experts also from ``"chosen"``, whether each expert is among the top k.

        Raises:
            HookSiteError: If the model has no such site.
        """
        once = {site: self._checkpointing.once(reader) for site, reader in readers.items()}
        other = {site: self._features(ROUTER if site == CHOSEN else site) for site in once}
        own = {site: reader for site, reader in once.items() if not other.get(site)}
        with ExitStack() as stack:
            stack.enter_context(sites.attached(sites.reading_hooks(self._layers, own)))
            for site, features in other.items():
                if isinstance(features, RouterSite):
                    stack.enter_context(features.reading(once[site], site))
                elif features is not None:
                    stack.enter_context(features.reading(once[site]))
            yield

    def writing(
        self, site: str, neurons: Mapping[int, Int[torch.Tensor, " unit"]], change: Change, replaces: bool = False
    ) -> AbstractContextManager[None]:
        """Write new values at some neurons during every forward inside the block.

        One indexed write a layer, out of place and differentiable; blocks nest in the order entered, each starting
        from the values the one before wrote. Enter ``act`` before ``post``, as the layer computes them: on gated MLPs
        an ``act`` entered later gives its neurons the ``post`` that follows from it, whatever was written there.

        Args:
            site: The site to write at.
            neurons: From layer index to sorted indices of neurons, or of heads at ``head``.
            change: A function of (layer index, current values) that returns the new ones, for the neurons given only:
                "batch position neuron", at ``head`` "batch position head d_head". At ``router`` new probabilities are
                carried out by new logits, and the other experts keep theirs in proportion.
            replaces: Whether ``change`` looks only at the shape of the current values, which are then not computed.

        Raises:
            HookSiteError: If the site, a layer or an index does not exist.
        """
        features = self._features(site)
        neurons = sites.checked_units(self.name, site, self.shape(site), neurons)
        on_device = {layer: units.to(self.device, torch.int64) for layer, units in neurons.items()}
        if features is not None:
            return features.writing(on_device, change)
        return sites.writing_hooks(self._layers, site, on_device, change, replaces)

    def cached(self, cache: Any, site: str, layer: int) -> torch.Tensor:
        """Find a site's tensor of one layer in a TransformerLens ActivationCache.

        Args:
            cache: The cache that ``run_with_cache`` returned for this model.
            site: Any site.
            layer: The layer.

        Returns:
            "batch position neuron", at ``head`` "batch position head d_head".

        Raises:
            HookSiteError: If the cache does not hold the hook the site is read from.
        """
        features, own = self._features(site), self._layers[layer]
        if isinstance(features, RouterSite):
            raise HookSiteError(
                f"A cache does not hold which experts are chosen: record {site!r} by running the model."
            )
        hook = str((own.point(site) if features is None else features.placed[layer].reads).name)
        try:
            values = cache[hook]
        except KeyError as error:
            raise HookSiteError(f"The cache lacks {hook}, which site {site!r} is read from; cache it too.") from error
        return own.values(site, values) if features is None else features.placed[layer].encoded(values)

    def check_sites(self, tokens: Int[torch.Tensor, "batch position"]) -> Float[torch.Tensor, "batch position token"]:
        """Run the model once, check that each site's tensor arrives once a layer, and return the logits.

        Raises:
            HookSiteError: If a site's hook does not fire exactly once, or widths differ between layers.
        """
        logits, widths = sites.check_fires(self.name, self._layers, lambda: self.forward(tokens), self._own_sites)
        # A site counts only if its tensor arrives in whichever way attention runs.
        self._widths = {site: width for site, width in widths.items() if site in (self._widths or widths)}
        self._unembeds = running.unembeds(self.hidden, self.runner.unembed, tokens, logits)
        return logits

    @property
    def hooked(self) -> bool:
        """Whether anything is attached to the model at this moment, such as a patch or a trained update."""
        trained = any(projection.changes for projection in self._projections.values())
        routed = any(router.writes for site in self.routers.values() for router in site.placed)
        return trained or routed or count_hooks(self.model) > self._own_hooks

    def act_fn(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Find the activation function that a layer's MLP really calls."""
        return self._layers[layer].act_fn

    def act_range(self) -> tuple[float, float]:
        """Find the least and the largest value that the activation function can give; inf where it has no bound."""
        if self._act_range is None:
            self._act_range = sites.range_of(self.act_fn(0), self.device)
        return self._act_range

    def post_of(self, layer: int, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Compute ``post`` from ``pre`` (and ``up`` on gated MLPs), as the layer's MLP does."""
        return self._layers[layer].post_of(pre, up)
