"""One vocabulary over HookedTransformer and TransformerBridge, whoever loaded them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from transformers import PreTrainedTokenizerBase

from langneurons.errors import HookSiteError, LangNeuronsError, ModelError, TrainingError, unknown
from langneurons.models.backends.bridge import native_attention
from langneurons.models.backends.hooked import hooked_class
from langneurons.models.features.sites import FeatureSite
from langneurons.models.generating import Following, GeneratedRows, Stop, following
from langneurons.models.probe import Probe
from langneurons.models.projections import Projection, check_target
from langneurons.models.running import ResidualOf, RunningBridge, RunningHooked, checkpointed, resumed_above
from langneurons.models.sites import (
    SITES,
    Change,
    Layer,
    Reader,
    attached,
    range_of,
    reading_hooks,
    writing_hooks,
)
from langneurons.models.weights import WeightsVersion, module_fingerprint
from langneurons.storage import fingerprint

_VIEW = "_langneurons_view"


def view(model: Any) -> "ModelView":
    """See a model through one vocabulary; the view is made once and lives as long as the model.

    Args:
        model: A HookedTransformer or TransformerBridge, from load_model or from TransformerLens.

    Returns:
        The model's view.

    Raises:
        ModelError: If it is neither.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    if (made := vars(model).get(_VIEW) if isinstance(model, nn.Module) else None) is not None:
        return made
    made = ModelView(model)
    made.check_sites(torch.arange(min(4, made.context_length), device=made.device)[None])
    return made


class ModelView:
    """What every room needs of a model: its shape, its forward, and reading and writing its neurons.

    Attributes:
        model: The TransformerLens object.
        tokenizer: Its tokenizer as the checkpoint has it, or None.
        name: What it is called.
        backend: ``"hooked"`` or ``"bridge"``.
        n_layers: How many layers it has.
        context_length: The longest text it takes, in tokens.
        gated: Whether its MLP multiplies act by up, so that ``act`` and ``post`` differ.
        act_fn_name: Its activation function, as the checkpoint's configuration names it.
        feature_sites: The sites that dictionaries were added as, by name.
        loaded_as: The arguments of ``load_model`` that load it again in another process; None where it was given as an
            object.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, name: str | None = None) -> None:
        self.model = model
        self.backend = _backend_of(model)
        self._running = RunningHooked(model) if self.backend == "hooked" else RunningBridge(model)
        self.tokenizer = tokenizer if tokenizer is not None else model.tokenizer
        self.name: str = name or model.cfg.model_name
        self.n_layers: int = model.cfg.n_layers
        self.context_length: int = model.cfg.n_ctx
        self._layers = [self._layer(index) for index in range(self.n_layers)]
        self.gated = self._layers[0].gated
        self.act_fn_name: str = self._running.act_fn_name
        self.feature_sites: dict[str, FeatureSite] = {}
        self.loaded_as: dict[str, Any] | None = None
        self._widths: dict[str, int] = {}
        self._fingerprint: tuple[WeightsVersion, str] | None = None
        self._held_fingerprint: str | None = None
        self._before_merging: dict[str, str] = {}
        self._attention: str | None = None
        self._running_again = False
        self._act_range: tuple[float, float] | None = None
        self._projections: dict[tuple[int, str], Projection] = {}
        # TransformerLens 4 attaches hooks of its own to some bridges (OPT), for good.
        self._own_hooks = sum(handle.is_permanent for handle in self._handles())
        vars(model)[_VIEW] = self

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it has."""
        return (*SITES, *self.feature_sites)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the embedding is, and so where tokens go."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Which weights: as load_model found them, or as they are now if they were changed in place since.

        Equal for both backends loaded through load_model from the same weights and dtype.
        """
        if self._held_fingerprint is not None:
            return self._held_fingerprint
        if self._fingerprint is None or not self._fingerprint[0].current(self.model):
            self._fingerprint = (WeightsVersion(self.model), module_fingerprint(self.model))
        return self._fingerprint[1]

    def remember_fingerprint(self, fingerprint: str) -> None:
        """Keep the fingerprint of the weights the model was loaded with, until they change."""
        self._fingerprint = (WeightsVersion(self.model), fingerprint)

    def remember_merging(self, before: str) -> None:
        """Keep what the weights were before an update was written into them, ``before`` and as they are now."""
        self._before_merging[self.fingerprint] = self._before_merging.get(before, before)

    def is_of(self, fingerprint: str) -> bool:
        """Whether the weights are these, or were before updates were merged into them."""
        return fingerprint in (self.fingerprint, self._before_merging.get(self.fingerprint))

    def fingerprint_at(self, site: str) -> str:
        """Which weights, and at a site of features also which dictionaries, its values come from."""
        self._known(site)
        features = self.feature_sites.get(site)
        return self.fingerprint if features is None else fingerprint(self.fingerprint, features.fingerprint)

    def width(self, site: str) -> int:
        """Count a layer's neurons at a site (its heads at ``head``), as read from the site's tensor."""
        return self.shape(site)[1]

    def shape(self, site: str) -> tuple[int, int]:
        """Count a site's layers and units a layer; a site of features has as many layers as dictionaries."""
        self._known(site)
        features = self.feature_sites.get(site)
        return (self.n_layers, self._widths[site]) if features is None else features.shape

    def add_features(self, site: FeatureSite) -> None:
        """Add a site of features.

        Raises:
            HookSiteError: If there is a site of that name, or a dictionary does not fit.
        """
        if site.name in (*self.sites, "up"):
            raise HookSiteError(f"{self.name!r} has a site {site.name!r} already: give another name=, or remove it.")
        with torch.no_grad():
            site.check(lambda: self.forward(torch.arange(min(4, self.context_length))[None], logits=False))
        self.feature_sites[site.name] = site

    def layer(self, index: int) -> Layer:
        """Find a layer and its hook points.

        Raises:
            HookSiteError: If there is no such layer.
        """
        if not 0 <= index < self.n_layers:
            raise HookSiteError(f"{self.name!r} has no layer {index}: its layers are 0 to {self.n_layers - 1}.")
        return self._layers[index]

    def act_fn(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Find the activation function a layer's MLP really calls."""
        return self._layers[layer].act_fn

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
            logits: Whether logits are wanted; without them the unembedding is skipped.

        Returns:
            Logits, or None.
        """
        return self._running.forward(tokens.to(self.device), attention_mask, logits)

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
        return self._running.hidden(tokens.to(self.device), attention_mask)

    def logits_at(
        self, tokens: Int[torch.Tensor, "batch position"], positions: Sequence[int]
    ) -> Float[torch.Tensor, "batch chosen token"]:
        """Run the model and unembed some positions only: all of them would fill the memory for a large vocabulary.

        Args:
            tokens: Token ids, special tokens included, padding on the right.
            positions: Which.
        """
        return self._running.logits_at(tokens.to(self.device), torch.tensor(list(positions), device=self.device))

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[torch.Tensor, "row position"],
        attention_mask: Int[torch.Tensor, "row position"],
        max_new_tokens: int,
        stop: Stop | None = None,
        eos: int | None = None,
        min_new_tokens: int = 0,
    ) -> list[list[int]]:
        """Generate greedily, with a key-value cache; hooks see every step.

        Args:
            tokens: Left-padded prompts; with the padding and the new tokens they must fit in the context.
            attention_mask: 0 for padding, 1 for real tokens.
            max_new_tokens: The most that a row generates.
            stop: Whether a row ends with the ids it has generated so far.
            eos: The id that ends a row.
            min_new_tokens: How long that id is not chosen.

        Returns:
            The ids that each row generated, up to and with what ended it.
        """
        tokens, attention_mask = tokens.to(self.device), attention_mask.to(self.device)
        rows = GeneratedRows(len(tokens), max_new_tokens, stop, eos, min_new_tokens)
        self._running.generate(tokens, attention_mask, rows, max_new_tokens)
        return rows.ids

    @contextmanager
    def native_attention(self) -> Iterator[None]:
        """Run a bridge's attention in transformers' own way inside the block, about as fast as the plain model.

        Every site can be read and written as ever; ``hook_pattern`` and ``hook_attn_scores`` stay silent. Nothing
        changes for a HookedTransformer, nor for a bridge that failed the check of this at load, or was not loaded by
        load_model.
        """
        before = self._held_fingerprint
        if self._fingerprint is not None:
            self._held_fingerprint = self.fingerprint  # inside, parameters have other names
        try:
            with native_attention(self.model, self._attention) if self._attention else nullcontext():
                yield
        finally:
            self._held_fingerprint = before

    def try_native_attention(self, implementation: str, probe: Probe) -> None:
        """Make ``native_attention`` available if, with it, sites still fire once and logits are still right."""
        self._attention = implementation
        try:
            with self.native_attention():
                probe.check(self.check_sites(probe.tokens), self.name, self.backend)
        except LangNeuronsError:
            self._attention = None

    @contextmanager
    def reading(self, readers: Mapping[str, Reader]) -> Iterator[None]:
        """Hand each site's tensor to a function, once a layer, during every forward inside the block.

        ``head`` is "batch position head d_head", every other site "batch position neuron". Values
        written by a ``writing`` entered before are seen, with one exception: on gated MLPs ``act`` is act_fn of the
        pre-activation, so values written at ``act`` show only at ``post``.

        Args:
            readers: From site to a function of (layer index, values); what it returns is ignored. On gated MLPs also
                from ``"up"``, the factor that ``act`` is multiplied by.

        Raises:
            HookSiteError: If a site is unknown.
        """
        for site in readers:
            if not (site == "up" and self.gated):
                self._known(site)
        once = {site: self._once(reader) for site, reader in readers.items() if site not in self.feature_sites}
        with ExitStack() as stack:
            stack.enter_context(attached([hook for layer in self._layers for hook in reading_hooks(layer, once)]))
            for site in readers.keys() - once.keys():
                stack.enter_context(self.feature_sites[site].reading(self._once(readers[site])))
            yield

    def cached(self, cache: Any, site: str, layer: int) -> torch.Tensor:
        """Find a site's tensor of one layer in a TransformerLens ActivationCache.

        Args:
            cache: What ``run_with_cache`` gave for this model.
            site: Any site.
            layer: The layer.

        Returns:
            "batch position neuron", at ``head`` "batch position head d_head".

        Raises:
            HookSiteError: If the cache does not hold the hook the site is read from.
        """
        self._known(site)
        features = self.feature_sites.get(site)
        name = (self._layers[layer].point(site) if features is None else features.placed[layer].reads).name
        try:
            values = cache[name]
        except KeyError as error:
            raise HookSiteError(f"The cache lacks {name}, which site {site!r} is read from; cache it too.") from error
        if features is not None:
            return features.placed[layer].encoded(values)
        one = self._layers[layer]
        shaped = one.shaped(site, values)
        return one.act_fn(shaped) if site == "act" and self.gated else shaped

    @contextmanager
    def writing(
        self, site: str, neurons: Mapping[int, Int[torch.Tensor, " unit"]], change: Change, replaces: bool = False
    ) -> Iterator[None]:
        """Write new values at some neurons during every forward inside the block.

        One indexed write a layer, out of place and differentiable; blocks nest in the order entered, each starting
        from the values the one before wrote. Enter ``act`` before ``post``, as the layer computes them: on gated MLPs
        an ``act`` entered later gives its neurons the ``post`` that follows from it, whatever was written there.

        Args:
            site: Where to write.
            neurons: From layer index to sorted indices of neurons, or of heads at ``head``.
            change: A function of (layer index, current values) that returns the new ones, for the neurons given only:
                "batch position neuron", at ``head`` "batch position head d_head".
            replaces: Whether ``change`` looks only at the shape of the current values, which are then not computed.

        Raises:
            HookSiteError: If the site, a layer or an index does not exist.
        """
        self._known(site)
        on_device = {layer: self._indices(site, layer, units) for layer, units in neurons.items() if len(units)}
        features = self.feature_sites.get(site)
        with (
            writing_hooks(self._layers, site, on_device, change, replaces)
            if features is None
            else features.writing(on_device, change)
        ):
            yield

    def output_norm(self, site: str) -> Float[torch.Tensor, "layer unit"]:
        """Measure how strongly each neuron can write: the norm of its row of W_out, of a head's block of W_O.

        Args:
            site: Any site; the three of the MLP share W_out, and a coordinate of the residual stream writes itself.

        Returns:
            Norms in float32, on CPU.
        """
        self._known(site)
        if site in self.feature_sites:
            return self.feature_sites[site].output_norm()
        return torch.stack([layer.output_norm(site) for layer in self._layers])

    @torch.no_grad()
    def check_sites(self, tokens: Int[torch.Tensor, "batch position"]) -> Float[torch.Tensor, "batch position token"]:
        """Run the model once and check that every site's tensor arrives exactly once a layer, all of one width.

        Args:
            tokens: What to run it on.

        Returns:
            The logits of that run.

        Raises:
            HookSiteError: If a site's hook does not fire exactly once, or widths differ between layers.
        """
        seen: dict[str, list[tuple[int, int]]] = {site: [] for site in SITES}
        with ExitStack() as stack:
            stack.enter_context(attached([hook for layer in self._layers for hook in _find_shapes(layer)]))
            stack.enter_context(self.reading({site: _note(found) for site, found in seen.items()}))
            logits = self.forward(tokens)
        for site, found in seen.items():
            if [layer for layer, _ in found] != list(range(self.n_layers)):
                fired = sorted(layer for layer, _ in found)
                raise HookSiteError(
                    f"The hooks of site {site!r} of {self.name!r} fire at layers {fired}; each of its {self.n_layers} "
                    "layers should fire once."
                )
            if len(widths := {width for _, width in found}) != 1:
                raise HookSiteError(f"Layers of {self.name!r} differ in width at site {site!r}: {sorted(widths)}.")
            self._widths[site] = widths.pop()
        assert logits is not None
        return logits

    def output_weights(self, layer: int, site: str) -> Float[torch.Tensor, "unit d_model"]:
        """Find what a layer's units write to the residual stream: W_out, or a head's W_O with its d_head rows in turn.

        Args:
            layer: The layer.
            site: Any site of the MLP, or ``head``.
        """
        return self._layers[layer].output_weights(site)

    @property
    def hooked(self) -> bool:
        """Whether anything is attached to the model at this moment, such as a patch or a trained update."""
        trained = any(projection.changes for projection in self._projections.values())
        return trained or len(self._handles()) > self._own_hooks

    def _handles(self) -> list[Any]:
        """What is attached at hook points; a point that has several names is asked once."""
        points = {id(point): point for point in self.model.hook_dict.values()}
        return [handle for point in points.values() for handle in point.fwd_hooks]

    def post_of(self, layer: int, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Compute ``post`` from ``pre`` (and ``up`` on gated MLPs), as the layer's MLP does."""
        return self._layers[layer].post_of(pre, up)

    def act_range(self) -> tuple[float, float]:
        """Find the least and the largest value that the activation function can give; inf where it has no bound."""
        if self._act_range is None:
            self._act_range = range_of(self.act_fn(0), self.device)
        return self._act_range

    @contextmanager
    def following(self) -> Iterator[Following]:
        """Tell, inside the block, which positions of the running forward are prompt and which are generated.

        Every forward that is not part of a ``generate`` (of this view, of the model, or of the Hugging Face model in a
        bridge) is all prompt.
        """
        with following([self, *self._running.generators], self._layers[0].input_point) as progress:
            yield progress

    @contextmanager
    def above(self, layer: int, residual_of: ResidualOf) -> Iterator[None]:
        """Run only the layers above one, inside the block, from a residual stream that is known already.

        Whatever runs the model counts, such as scoring a text; positions and masks are those of the whole forward, and
        sites above the layer are read and written as ever, those up to it not at all.

        Args:
            layer: The last layer that is not run; -1 runs all.
            residual_of: From a forward's tokens, "batch position", to the residual stream after the layer, "batch
                position d_model"; None for tokens that shall be run whole.

        Raises:
            HookSiteError: If there is no such layer.
        """
        if not -1 <= layer < self.n_layers:
            raise HookSiteError(f"{self.name!r} has no layer {layer}: its layers are 0 to {self.n_layers - 1}.")
        with resumed_above(self.model.blocks, self._running.embedding, layer, residual_of):
            yield

    @contextmanager
    def gradient_checkpointing(self) -> Iterator[None]:
        """Keep of each layer only its input for a backward pass, inside the block, and run the layer again there.

        Gradients stay what they are and memory shrinks, for the time of another forward. Patches are written again
        when a layer runs again; ``reading`` still hands on every tensor once.
        """
        with checkpointed(self.model.blocks, self._running.checkpointing_config, self._again):
            yield

    @contextmanager
    def _again(self) -> Iterator[None]:
        self._running_again = True
        try:
            yield
        finally:
            self._running_again = False

    def _once(self, reader: Reader) -> Reader:
        return lambda layer, values: None if self._running_again else reader(layer, values)

    def projection(self, layer: int, target: str) -> Projection:
        """Find a matrix of a layer that can be trained: gate, up, down, q, k, v or o.

        Args:
            layer: The layer.
            target: Which one.

        Raises:
            TrainingError: If the model has no such projection, or it cannot be reached.
        """
        check_target(target, self.gated)
        if (layer, target) not in self._projections:
            built = self._running.build_projection(self.model, self.gated, layer, target)
            self._projections[layer, target] = built
        return self._projections[layer, target]

    def check_weights_writable(self) -> None:
        """Refuse to have weights written where the change would not be noticed.

        Raises:
            TrainingError: Inside ``native_attention``.
        """
        if self._held_fingerprint is not None:
            raise TrainingError("Weights cannot be written inside native_attention(): leave it first.")

    def _layer(self, index: int) -> Layer:
        block = self.model.blocks[index]
        mlp, attention = getattr(block, "mlp", None), getattr(block, "attn", None)
        points = [getattr(mlp, "hook_pre", None), getattr(mlp, "hook_post", None), getattr(attention, "hook_z", None)]
        if mlp is None or attention is None or None in points:
            raise HookSiteError(f"Layer {index} of {self.name!r} lacks an MLP or an attention that hooks can reach.")
        gated = getattr(mlp, "hook_pre_linear", None) is not None
        return Layer(
            index=index,
            mlp=mlp,
            attention=attention,
            input_point=block.hook_resid_pre,
            output_point=block.hook_resid_post,
            act_fn=self._running.act_fn(mlp),
            gated=gated,
            adds_bias=gated and self.backend == "hooked",
            n_heads=self.model.cfg.n_heads,
        )

    def _known(self, site: str) -> None:
        if site not in self.sites:
            raise HookSiteError(unknown("site", site, self.sites))

    def _indices(self, site: str, layer: int, units: torch.Tensor) -> torch.Tensor:
        layers, width = self.shape(site)
        if not 0 <= layer < layers:
            raise HookSiteError(f"{self.name!r} has no layer {layer} at site {site!r}: there are 0 to {layers - 1}.")
        low, high = int(units.min()), int(units.max())
        if low < 0 or high >= width:
            raise HookSiteError(
                f"{self.name!r} has {width} units a layer at site {site!r}, so none of index "
                f"{low if low < 0 else high}."
            )
        return units.to(self.device, torch.int64)


def _backend_of(model: Any) -> str:
    hooked = hooked_class()
    if hooked is not None and isinstance(model, hooked):
        return "hooked"
    if hasattr(model, "original_model") and hasattr(model, "cfg"):
        return "bridge"
    raise ModelError(f"Not a HookedTransformer or TransformerBridge: {type(model).__name__}; load_model() gives one.")


def _note(found: list[tuple[int, int]]) -> Reader:
    return lambda layer, values: found.append((layer, values.shape[2]))


def _find_shapes(layer: Layer) -> list[tuple[Any, Any]]:
    """Find out, before any site is read, whether a layer's MLP sees batch and position as one axis."""

    def batch(values: torch.Tensor) -> None:
        layer.batch_size = values.shape[0]

    def flattened(values: torch.Tensor) -> None:
        layer.flattened = values.ndim == 2

    return [(layer.input_point, batch), (layer.mlp.hook_pre, flattened)]
