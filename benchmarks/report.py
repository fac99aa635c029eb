"""The report: how large a file of two hundred neurons is, and a neuron's page in it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import langneurons as ln
from benchmarks.measuring import Settings
from benchmarks.rows import Row
from langneurons.views.report_pages import neuron_pages


def rows(settings: Settings) -> Iterator[Row]:
    """Report on neurons of babel: statistics with figures, two methods, an ablation, and a page for each neuron."""
    count, texts, languages = (5, 10, ["en", "hi"]) if settings.tiny else (200, 80, None)
    model, corpus = ln.load_model("babel", device="cpu"), ln.load_corpus("babel", languages).take(texts)
    stats = ln.record(model, corpus, context_length=64, progress=False)
    lape = ln.LAPE(top=0.05).identify(stats)
    pooled = ln.ActivationProbability(threshold="pooled-p90", top=0.01).identify(stats)
    shown = lape.clearest(stats, count)
    profiles = ln.profile(model, shown, corpus, stats, k=3, documents=texts, progress=False)
    text = ln.HeldoutText.of(model, corpus, 100, context_length=32)
    ablation = ln.ablate(model, shown, text, resamples=100, progress=False)
    neurons = {"LAPE": lape, "pooled-p90": pooled}
    found = {"stats": stats, "neurons": neurons, "profiles": profiles, "ablation": ablation}
    findings = ln.Findings("How large is a report?", **found)
    with tempfile.TemporaryDirectory() as folder:
        html = ln.write_report(Path(folder, "report.html"), findings).read_bytes()
    pages = [len(page.encode()) for part in neuron_pages(findings, profiles).parts for page in part.values()]
    assert len(pages) == count, f"{len(pages)} pages, not {count}"
    yield Row(f"report for {count} neurons, babel", "", len(html) / 1e6, "MB", at_most=5.0)
    yield Row("its largest page of a neuron", "", max(pages) / 1e3, "KB", at_most=10.0)
