"""Recording: record(), the forward it rides on, the paper's way; its memory, and its size on disk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import langneurons as ln
from benchmarks.llama import BACKENDS, chosen, loaded, of_processors, random_llama
from benchmarks.measuring import Settings, Way, medians, memory_is_seen, peak
from benchmarks.rows import Row
from langneurons.corpora import PackedCorpus, pack
from langneurons.models import ModelView, view
from langneurons.recording.passes import Pass, RecordingFolder
from langneurons.settings import Recording

BATCHES, BATCH, CONTEXT = 3, 8, 256
PERCENTILES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)
PAPER = {
    "the paper's way (two passes, seven torch.quantile calls a layer and batch)": False,
    "the same, one vectorised torch.quantile call": True,
}
PAPER_HOLDS = {"hooked": 10.0, "bridge": 15.0}
ONE_CALL_HOLD = 3.0
NARROW = "SmolLM2-135M's shape"
FORWARD = "forward without unembedding"
PLAIN = "Hugging Face sdpa forward with logits"


def phrasebook(folder: Path, seen: ModelView, tokens: int, context: int) -> PackedCorpus:
    """Pack repeated phrasebook text of one language into at least so many tokens."""
    documents = list(ln.load_corpus("babel", ["en"]).texts("en"))
    return pack(ln.load_corpus({"en": documents * (1 + tokens // 4000)}), seen.tokenizer, context, folder)


class Ways:
    """What is compared, each on the same batches of one model."""

    def __init__(self, model: Any, folder: Path, batches: int, batch: int = BATCH, context: int = CONTEXT):
        self.seen, self.tokens = view(model), batches * batch * context
        packed = phrasebook(folder, self.seen, self.tokens, context)
        self.parts = [range(i * batch, (i + 1) * batch) for i in range(batches)]
        self.blocks = [packed.blocks("en", part).tokens.to(self.seen.device) for part in self.parts]
        whole = range(batches * batch)
        here = RecordingFolder(folder, resumable=False)
        self.recording = Pass(self.seen, packed, {"en": whole}, Recording(), batch, here)
        self.state = self.recording._start("en", whole)

    def forward(self) -> None:
        """The model alone, without unembedding."""
        for tokens in self.blocks:
            self.seen.forward(tokens, logits=False)

    def record(self) -> None:
        """The same forwards, keeping all statistics."""
        with self.seen.native_attention():
            for part in self.parts:
                self.recording._add(self.state, "en", part)

    def paper(self, one_call: bool) -> None:
        """Two passes: moments and seven quantiles a layer and batch, then the share above each of the quantiles."""
        with self._kept() as (layers, run):
            thresholds = [torch.empty(0)] * self.seen.n_layers
            for tokens in self.blocks:
                run(tokens)
                for layer, z in enumerate(layers):
                    z.mean(0), z.std(0), z.abs().mean(0)
                    if one_call:
                        thresholds[layer] = torch.quantile(z, torch.tensor(PERCENTILES, device=z.device), dim=0)
                    else:
                        thresholds[layer] = torch.stack([torch.quantile(z, share, dim=0) for share in PERCENTILES])
            for tokens in self.blocks:
                run(tokens)
                for layer, z in enumerate(layers):
                    (z > 0).float().mean(0)
                    for threshold in thresholds[layer]:
                        (z > threshold).float().mean(0)

    @contextmanager
    def _kept(self) -> Iterator[Any]:
        layers: list[torch.Tensor] = [torch.empty(0)] * self.seen.n_layers

        def keep(layer: int, values: torch.Tensor) -> None:
            layers[layer] = values.flatten(0, 1).float()  # torch.quantile takes no half precision

        with self.seen.reading({"pre": keep}):
            yield layers, lambda tokens: self.seen.forward(tokens, logits=False)


def against_a_forward(name: str, ways: Ways, base: str, forward: Way, hold: float, settings: Settings) -> Iterator[Row]:
    """Compare record() with a forward on as many tokens."""
    taken = medians({base: forward, "record": ways.record}, settings.rounds)
    speed = f"{ways.tokens / taken['record']:,.0f} tokens/s"
    yield Row(f"record(), all statistics, {name}", base, taken["record"] / taken[base], at_most=hold, detail=speed)


def against_the_paper(name: str, backend: str, ways: Ways, settings: Settings, device: str = "cpu") -> Iterator[Row]:
    """Compare the paper's two passes with record() on as many tokens."""
    compared: dict[str, Way] = {what: lambda one_call=one: ways.paper(one_call) for what, one in PAPER.items()}
    taken = medians({"record": ways.record, **compared}, settings.rounds, device)
    for what, one_call in PAPER.items():
        hold = ONE_CALL_HOLD if one_call else PAPER_HOLDS[backend]
        yield Row(f"{what}, {name}", "record()", taken[what] / taken["record"], at_least=hold)


@torch.no_grad()
def rows(settings: Settings) -> Iterator[Row]:
    """Compare on babel and on both backends of a larger model, then measure memory and disk."""
    batches, batch, context = (1, 2, 32) if settings.tiny else (BATCHES, BATCH, CONTEXT)
    size = f"{batch} x {context}"
    hf_model = random_llama(chosen(settings.tiny))
    with tempfile.TemporaryDirectory() as folder:
        babel = Ways(ln.load_model("babel", device="cpu"), Path(folder, "babel"), batches, batch, context)
        yield from against_a_forward(f"babel, {size}", babel, FORWARD, babel.forward, 1.2, settings)
        for backend, name in BACKENDS.items():
            model = loaded(hf_model if backend == "hooked" else random_llama(chosen(settings.tiny)), backend)
            ways = Ways(model, Path(folder, backend), batches, batch, context)

            def plain(ways: Ways = ways) -> None:
                for tokens in ways.blocks:
                    hf_model(tokens, use_cache=False)

            base, forward, hold = (PLAIN, plain, 1.05) if backend == "bridge" else (FORWARD, ways.forward, 1.08)
            yield from against_a_forward(f"44M {name}, {size}", ways, base, forward, hold, settings)
            one = Ways(model, Path(folder, f"{backend} paper"), 1, batch, context)  # a batch costs as much as any other
            yield from against_the_paper(f"44M {name}, {size}", backend, one, settings)
        narrow = loaded(random_llama(of_processors(settings.tiny)[NARROW]), "hooked")
        ways = Ways(narrow, Path(folder, "narrow"), 1, batch, context)
        name = f"{NARROW}, HookedTransformer, {size}"
        yield from against_a_forward(name, ways, FORWARD, ways.forward, 1.05, settings)
    yield from size_rows(settings)


def size_rows(settings: Settings) -> Iterator[Row]:
    """Measure what a recording of babel holds in memory, for a corpus and one ten times as long, and on disk."""
    lengths, context = ((100, 200), 32) if settings.tiny else ((40_000, 400_000), CONTEXT)
    if memory_is_seen():
        small, large = (settings.apart(peak_while_recording, tokens, context) for tokens in lengths)
        what, detail = f"record(), peak memory, babel, {lengths[1]:,} tokens", f"{large:,.0f} MB and {small:,.0f} MB"
        yield Row(what, f"{lengths[0]:,} tokens", large / small, at_most=1.05, at_least=0.95, detail=detail)
    yield Row("statistics on disk, a language and neuron, babel", "", bytes_on_disk(), "bytes", at_most=800.0)


def peak_while_recording(tokens: int, context: int) -> float:
    """Record so many tokens and give this process' peak memory meanwhile, in MB."""
    model, phrases = ln.load_model("babel", device="cpu"), ln.load_corpus("babel", ["en"])
    documents = list(phrases.texts("en"))
    corpus = ln.load_corpus({"en": (text for _ in range(1 + tokens // 4000) for text in documents)})
    ln.record(model, phrases, tokens_per_language=100, context_length=context, progress=False)  # compiles
    return peak(lambda: ln.record(model, corpus, tokens_per_language=tokens, context_length=context, progress=False))


def bytes_on_disk() -> float:
    """Save a short recording of babel and give the bytes a language and neuron, what all languages share aside."""
    corpus = ln.load_corpus("babel", ["en", "hi"])
    model = ln.load_model("babel", device="cpu")
    stats = ln.record(model, corpus, tokens_per_language=100, context_length=32, progress=False)
    layers, width = stats.shape
    with tempfile.TemporaryDirectory() as folder:
        written = sum(file.stat().st_size for file in stats.save(Path(folder, "statistics")).glob("*.act.safetensors"))
    return written / (len(stats.languages) * layers * width)
