"""Commands that record, identify, patch and measure."""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import langneurons as ln
from langneurons.cli.entry import Backend, Device, Dtype, Languages, RecordedSite, TextColumn, Where, app
from langneurons.cli.parsing import MethodName, MethodOptions, codes, listed, make_method
from langneurons.errors import PatchError, StatisticsError, TaskError
from langneurons.evaluation.evaluating import chosen_languages
from langneurons.study.demo import run_demo
from langneurons.study.wording import language_patches, patch_maker


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Where the demo writes.")] = Path("runs/demo")) -> None:
    """Run a whole small study on the embedded model."""
    print(run_demo(out))


@app.command()
def record(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    corpus: Annotated[str, typer.Argument(help="A folder of <lang>*.{txt,jsonl,parquet}, babel, or a hub data set.")],
    out: Annotated[Path, typer.Option(help="Folder for the statistics; the same command goes on there.")],
    languages: Languages = None,
    tokens: Annotated[int | None, typer.Option(help="Counted tokens a language; as many as the smallest has.")] = None,
    context_length: Annotated[int, typer.Option(help="Positions a block, a multiple of 16.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Blocks a forward.")] = 8,
    sites: Annotated[str, typer.Option(help="Comma-separated, among pre, act, post, head, resid_post.")] = "act",
    also: Annotated[
        str,
        typer.Option(help="What some methods need: sentence (sentence-ap), gradient (gradient-relevance), or both."),
    ] = "",
    sentences: Annotated[int, typer.Option(help="Documents a language that --also sentence keeps.")] = 500,
    split: Annotated[str, typer.Option(help="Part of the corpus.")] = "train",
    text_column: TextColumn = "text",
    seed: Annotated[int, typer.Option(help="Of the order in which documents are taken.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    executor: Where = None,
) -> None:
    """Record what every neuron does in every language."""
    loaded = ln.load_corpus(corpus, codes(languages), text_column=text_column, split=split).shuffle(seed)
    stats = ln.record(
        ln.load_model(model, backend=backend, dtype=dtype, device=device),
        loaded,
        tokens_per_language=tokens,
        context_length=context_length,
        batch_size=batch_size,
        sites=tuple(listed(sites)),
        out=out,
        also=listed(also),
        sentences=sentences,
        executor=executor,
    )
    print(f"{stats}\nNext: langneurons identify {out}")


@app.command()
def identify(
    statistics: Annotated[Path, typer.Argument(help="A folder that record wrote.")],
    method: MethodName = "lape",
    option: MethodOptions = None,
    languages: Languages = None,
    site: RecordedSite = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; STATISTICS/neurons.<method>.json.")] = None,
) -> None:
    """Name each language's neurons from recorded statistics."""
    stats = ln.ActivationStats.load(statistics)
    stats = stats if site is None else stats.at(site)
    wanted = codes(languages)
    neurons = make_method(method, option or []).identify(stats if wanted is None else stats.select(wanted))
    path = neurons.save(out or statistics / f"neurons.{method}.json")
    layers = neurons.counts()
    table = pd.DataFrame(
        {
            "language": neurons.languages,
            "neurons": [len(neurons[language]) for language in neurons.languages],
            "most in layer": [int(layers.loc[language].to_numpy().argmax()) for language in neurons.languages],
        }
    )
    print(table.to_string(index=False))
    print(f"{len(neurons):,} neurons in all, written to {path}")


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    corpus: Annotated[str, typer.Argument(help="Held-out text: a folder of <lang>*.{txt,jsonl,parquet}, babel, ...")],
    neurons: Annotated[
        Path | None, typer.Option(help="A file that identify wrote: patch each language's neurons.")
    ] = None,
    value: Annotated[
        str, typer.Option(help="What to write: a number, mean, a percentile such as p90; or add:mean, scale:2, ...")
    ] = "0",
    statistics: Annotated[
        Path | None,
        typer.Option(help="A folder that record wrote, for mean, percentiles and controls of equal magnitude."),
    ] = None,
    controls: Annotated[int, typer.Option(help="Draws of matched control neurons a language.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was measured; the same command goes on.")
    ] = None,
    each: Annotated[str, typer.Option(help="block for running text, document for parallel sentences.")] = "block",
    languages: Languages = None,
    tokens: Annotated[int | None, typer.Option(help="Counted tokens a language; as many as the smallest has.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Positions read at once, a multiple of 16.")] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks a forward.")] = 8,
    split: Annotated[str, typer.Option(help="Part of the corpus: files with this word in their name.")] = "heldout",
    text_column: TextColumn = "text",
    seed: Annotated[int, typer.Option(help="Of the order of documents, of controls and resampling.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    executor: Where = None,
) -> None:
    """Measure how well a model predicts each language, or what patching each language's neurons does to all of them."""
    if neurons is None and (statistics, out, value) != (None, None, "0"):
        raise StatisticsError("--value, --statistics and --out are about patching: give --neurons too.")
    loaded = ln.load_corpus(corpus, codes(languages), text_column=text_column, split=split).shuffle(seed)
    # What can be wrong with the small files is said before the model is loaded.
    chosen = None if neurons is None else ln.NeuronSet.load(neurons)
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    patch = patch_maker(value, stats)
    seen = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    text = ln.HeldoutText.of(seen, loaded, tokens, context_length, each)
    if chosen is None:
        print(ln.perplexity(seen, text, batch_size=batch_size).to_string(index=False))
        return
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "out": out, "executor": executor}
    matrix = ln.perplexity_matrix(seen, text, chosen, controls=controls, stats=stats, patch=patch, **options)
    print(matrix)
    if matrix.selectivity is not None and len(matrix.selectivity):
        print(f"\n{matrix.selectivity_table()}")
    if out is not None:
        print(f"Written to {matrix.save(out / 'matrix')}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    xnli: Annotated[str | None, typer.Option(help="A folder of XNLI files, or facebook/xnli.")] = None,
    xquad: Annotated[str | None, typer.Option(help="A folder of XQuAD files, or google/xquad.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Text whose beginnings are continued: in which language does the model write?")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Language of those beginnings; else each language's own.")] = None,
    languages: Languages = None,
    items: Annotated[int, typer.Option(help="Premises, questions and prompts a language.")] = 200,
    head: Annotated[Path | None, typer.Option(help="A saved classification head that answers XNLI.")] = None,
    calibration: Annotated[str, typer.Option(help="Of XNLI's label likelihoods: content-free, batch, none.")] = (
        "content-free"
    ),
    neurons: Annotated[Path | None, typer.Option(help="A file that identify wrote: patch each language's own.")] = None,
    patch: Annotated[
        list[str] | None,
        typer.Option(help="0, mean, p90 (set); add:mean, scale:2, diffmean; repeatable; 0 by default."),
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote, for mean, percentiles, diffmean and controls.")
    ] = None,
    controls: Annotated[int, typer.Option(help="Draws of matched control neurons a patch and language.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was measured; the same command goes on.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens of an answer or a continuation.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Texts a forward.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of items, of controls and resampling.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    executor: Where = None,
) -> None:
    """Score a model on XNLI, XQuAD and generation, without and with patches of each language's neurons."""
    wanted, tasks = codes(languages), []
    if patch and neurons is None:
        raise PatchError("--patch says what is written at neurons: give --neurons too.")
    if xnli is not None:
        asked = ln.XNLI.load(xnli, wanted, calibration=None if calibration == "none" else calibration, seed=seed)
        tasks.append(asked.take(items, seed))
    if xquad is not None:
        tasks.append(ln.XQuAD.load(xquad, wanted, max_new_tokens=max_new_tokens).take(items, seed))
    if prompts is not None:
        text = ln.load_corpus(prompts, wanted if source is None else None, split="heldout")
        given = {"max_new_tokens": max_new_tokens, "source": source, "documents": items, "seed": seed}
        tasks.append(ln.tasks.Generation.of(text, **given))
    if not tasks:
        raise TaskError("Nothing to evaluate on: give --xnli, --xquad or --prompts.")
    # What can be wrong with the small files is said before the model is loaded.
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    patches = {}
    if neurons is not None:
        labelled = ln.NeuronSet.load(neurons)
        patches = language_patches(labelled, patch or ["0"], stats)
        wanted = wanted or [name for name in chosen_languages(tasks, None) if name in labelled.languages]
    fitted = None if head is None else ln.tasks.ClassificationHead.load(head)
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "out": out, "executor": executor}
    found = ln.evaluate(loaded, tasks, wanted, patches, head=fitted, controls=controls, stats=stats, **options)
    print(found)
    for task in tasks if patches else []:
        print(f"\n{found.effects(task.name)}")
    if out is not None:
        print(f"Written to {found.save(out / 'evaluation')}")


@app.command()
def validity(
    statistics: Annotated[Path, typer.Argument(help="A folder that record wrote.")],
    method: MethodName = "lape",
    option: MethodOptions = None,
    languages: Languages = None,
    site: RecordedSite = None,
    splits: Annotated[int, typer.Option(help="Random halvings of the documents.")] = 20,
    model: Annotated[str | None, typer.Option(help="With --corpus: record texts without language, the nulls.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text for the nulls, in the order of its sources.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Counted tokens a language of the nulls.")] = None,
    context_length: Annotated[int, typer.Option(help="Positions a block of the nulls, a multiple of 16.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Blocks a forward.")] = 8,
    seed: Annotated[int, typer.Option(help="Of halvings and nulls.")] = 0,
) -> None:
    """Ask whether a method's score is real: does it repeat on other documents, and find nothing where nothing is?"""
    if (model is None) != (corpus is None):
        raise StatisticsError("The nulls need both --model and --corpus, or neither for split halves alone.")
    stats = ln.ActivationStats.load(statistics)
    stats = stats if site is None else stats.at(site)
    if model is not None and stats.site != "act":
        raise StatisticsError(
            f"The nulls are recorded at 'act', these statistics at {stats.site!r}: leave --model away."
        )
    wanted, chosen = codes(languages), make_method(method, option or [])
    print(ln.split_half(chosen, stats if wanted is None else stats.select(wanted), splits, seed))
    if model is not None and corpus is not None:
        text = ln.load_corpus(corpus, wanted)
        sizes = {"tokens_per_language": tokens, "context_length": context_length, "batch_size": batch_size}
        print(ln.nulls(chosen, ln.load_model(model), text, seed=seed, **sizes))


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
) -> None:
    """Say how large a model is, what neurons it has, and how it would be loaded, without loading it."""
    print(ln.describe(name))
