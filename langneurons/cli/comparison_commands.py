"""The command that sets methods side by side."""

from pathlib import Path
from typing import Annotated

import typer

import langneurons as ln
from langneurons.analysis.comparison import compare_methods
from langneurons.analysis.validity import NULLS
from langneurons.cli.entry import Backend, Device, Dtype, Languages, TextColumn, app
from langneurons.cli.parsing import codes, listed, make_method
from langneurons.errors import StatisticsError
from langneurons.identification import Method
from langneurons.study.wording import METHODS, parsed


@app.command("compare")
def compare_command(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    corpus: Annotated[str, typer.Argument(help="Text to record: a folder of <lang>*.{txt,jsonl,parquet}, babel, ...")],
    out: Annotated[Path, typer.Option(help="Folder for recordings and results; the same command goes on there.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="lape, or with options lape:top=0.01,filter_quantile=0.9; repeatable; all by default."),
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(help="Text to patch and ablate on: files with heldout in their name; else neither is done."),
    ] = None,
    languages: Languages = None,
    site: Annotated[str, typer.Option(help="pre, act, post or head.")] = "act",
    tokens: Annotated[int | None, typer.Option(help="Counted tokens a language; as many as the smallest has.")] = None,
    context_length: Annotated[int, typer.Option(help="Positions a block, a multiple of 16.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Blocks a forward.")] = 8,
    nulls: Annotated[str, typer.Option(help=f"Comma-separated, among {', '.join(NULLS)}.")] = "shuffled",
    value: Annotated[str, typer.Option(help="What patched and ablated neurons are given: a number.")] = "0",
    controls: Annotated[int, typer.Option(help="Draws of matched control neurons a language.")] = 0,
    sample: Annotated[int, typer.Option(help="Neurons to ablate, drawn at random from all.")] = 200,
    text_column: TextColumn = "text",
    seed: Annotated[int, typer.Option(help="Of documents, nulls, controls, sample and resampling.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Compare methods: overlap, split halves, nulls, selectivity of patching, agreement with exact ablation."""
    methods = {text: _method(text) for text in method or METHODS}
    number = parsed(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise StatisticsError(f"--value takes a number, not {value!r}.")
    text = ln.load_corpus(corpus, codes(languages), text_column=text_column).shuffle(seed)
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    read = None
    if heldout is not None:
        read = ln.load_corpus(heldout, list(text.languages), text_column=text_column, split="heldout").shuffle(seed)
    found = compare_methods(
        methods,
        loaded,
        text,
        read,
        sites=(site,),
        tokens_per_language=tokens,
        context_length=context_length,
        batch_size=batch_size,
        nulls=listed(nulls),
        value=number,
        controls=controls,
        sample=sample,
        seed=seed,
        out=out,
    )
    print(found)
    print(f"Written to {found.save(out / 'comparison')}")


def _method(text: str) -> Method:
    """A method from its name and options, such as ``lape:top=0.01``."""
    name, _, options = text.partition(":")
    return make_method(name, listed(options))
