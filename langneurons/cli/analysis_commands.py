"""The command that ablates neurons."""

from pathlib import Path
from typing import Annotated, Any

import typer

import langneurons as ln
from langneurons import storage
from langneurons.analysis.ablating import ablate
from langneurons.analysis.screening import screen
from langneurons.cli.entry import Backend, Device, Dtype, Languages, TextColumn, Where, app
from langneurons.cli.parsing import codes
from langneurons.errors import EffectError
from langneurons.study.wording import parsed

SAMPLE = 200  # neurons that the screen is checked on


@app.command("ablate")
def ablate_command(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    corpus: Annotated[str, typer.Argument(help="Held-out text, or with --xnli a folder of XNLI files.")],
    neurons: Annotated[Path | None, typer.Option(help="A file that identify wrote.")] = None,
    label: Annotated[str | None, typer.Option(help="Only this language's neurons.")] = None,
    top: Annotated[
        int | None,
        typer.Option(help="Instead of --neurons: so many a language, which a gradient predicts from half of the text."),
    ] = None,
    xnli: Annotated[bool, typer.Option("--xnli", help="Measure XNLI instead of the loss on a text.")] = False,
    metric: Annotated[str, typer.Option(help="nll, or a score of the task such as accuracy.")] = "nll",
    value: Annotated[str, typer.Option(help="What ablated neurons are given: a number, or mean.")] = "0",
    each: Annotated[str, typer.Option(help="neuron, group or cumulative.")] = "neuron",
    controls: Annotated[int, typer.Option(help="Matched control neurons a label.")] = 200,
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote, for mean and for controls of equal magnitude.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was measured; the same command goes on.")
    ] = None,
    show: Annotated[int, typer.Option(help="Effects to print.")] = 20,
    min_effect: Annotated[float, typer.Option(help="Smaller effects are not printed; 0.01 is 1 % or one point.")] = 0.0,
    latex: Annotated[Path | None, typer.Option(help="A file for the table in LaTeX.")] = None,
    languages: Languages = None,
    tokens: Annotated[int | None, typer.Option(help="Counted tokens a language; as many as the smallest has.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Positions read at once, a multiple of 16.")] = None,
    items: Annotated[int, typer.Option(help="XNLI premises.")] = 100,
    rows: Annotated[int, typer.Option(help="Rows a forward: neurons x texts.")] = 32,
    split: Annotated[str, typer.Option(help="Part of the corpus: files with this word in their name.")] = "heldout",
    text_column: TextColumn = "text",
    seed: Annotated[int, typer.Option(help="Of texts, controls and resampling.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    executor: Where = None,
) -> None:
    """Measure what the model loses without each neuron, beside matched controls."""
    if (neurons is None) == (top is None) or (top is not None and xnli):
        raise EffectError("Whose neurons? Give --neurons, or --top to screen the whole model on a text.")
    wanted = codes(languages)
    data: Any = (
        ln.XNLI.load(corpus, wanted).take(items, seed)
        if xnli
        else ln.load_corpus(corpus, wanted, text_column=text_column, split=split).shuffle(seed)
    )
    # What can be wrong with the small files is said before the model is loaded.
    known = None if neurons is None else ln.NeuronSet.load(neurons)
    known = known[label] if known is not None and label is not None else known
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    given = parsed(value)
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    if known is None:
        assert top is not None
        # Neurons chosen for large effects on some text look larger there than they are.
        screened_on, data = data.split(0.5, seed)
        text = ln.HeldoutText.of(loaded, screened_on, tokens, context_length)
        screened = screen(loaded, text, given, top, sample=SAMPLE, stats=stats, batch_size=rows, seed=seed, out=out)
        print(f"{screened}\nScreened on one half of the documents; their effects on the other half:\n")
        known = screened.neurons if label is None else screened.neurons[label]
    if not xnli:
        data = ln.HeldoutText.of(loaded, data, tokens, context_length)
    options: dict[str, Any] = {"each": each, "controls": 0 if each == "cumulative" else controls, "stats": stats}
    options |= {"batch_size": rows, "seed": seed, "out": out, "executor": executor}
    found = ablate(loaded, known, data, metric, given, **options)
    table = found.table(show, min_effect)
    print(table)
    if latex is not None:
        storage.write_text(latex, table.latex())
    if out is not None:
        print(f"Written to {found.save(out / 'ablation')}")
