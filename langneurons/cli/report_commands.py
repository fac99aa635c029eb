"""The commands that show: profile and report."""

from pathlib import Path
from typing import Annotated

import typer

import langneurons as ln
from langneurons.analysis.profiles import clearest_neurons
from langneurons.cli.entry import Backend, Device, Dtype, Languages, TextColumn, app
from langneurons.cli.parsing import codes
from langneurons.cli.run_folders import read_folder
from langneurons.errors import NeuronSetError
from langneurons.views.report.sections import provenance

QUESTION = "Which neurons belong to which language, and what do they do?"


@app.command("profile")
def profile_command(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    corpus: Annotated[str, typer.Argument(help="Texts to look through: a folder of <lang>*.{txt,jsonl,parquet}, ...")],
    neurons: Annotated[Path, typer.Option(help="A file that identify wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the profiles; report finds them there.")],
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote: to choose the clearest neurons, and similar ones.")
    ] = None,
    most: Annotated[int, typer.Option(help="Neurons to look at; of more, those furthest ahead in their language.")] = (
        200
    ),
    texts: Annotated[int, typer.Option(help="Texts of each kind: top, median, random.")] = 5,
    context_length: Annotated[int, typer.Option(help="Tokens of a text to read.")] = 64,
    documents: Annotated[int, typer.Option(help="Documents a language to look through.")] = 2000,
    languages: Languages = None,
    split: Annotated[str, typer.Option(help="Part of the corpus.")] = "train",
    text_column: TextColumn = "text",
    batch_size: Annotated[int, typer.Option(help="Texts a forward.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the documents and the random texts.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Look at single neurons: the texts that move them, the tokens they promote, the neurons like them."""
    chosen = ln.NeuronSet.load(neurons)
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    if len(chosen) > most and stats is None:
        raise NeuronSetError(f"{neurons} holds {len(chosen):,} neurons, more than {most}: give --statistics or --most.")
    if stats is not None and len(chosen) > most:
        chosen = clearest_neurons(chosen, stats, most)
    looked_at = ln.load_corpus(corpus, codes(languages), text_column=text_column, split=split)
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    found = ln.profile(
        loaded,
        chosen,
        looked_at,
        stats,
        k=texts,
        context_length=context_length,
        documents=documents,
        batch_size=batch_size,
        seed=seed,
    )
    print(f"{found}\nWritten to {found.save(out / 'profiles')}\nNext: langneurons report {out}")


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="A folder with results of the other commands.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; FOLDER/report.html.")] = None,
    question: Annotated[str, typer.Option(help="What the study asks: the report's title.")] = QUESTION,
) -> None:
    """Write everything that a folder holds as one HTML file that opens anywhere."""
    findings, left_out = read_folder(folder, question)
    path = ln.write_report(out or folder / "report.html", findings)
    print("\n".join([*left_out, *provenance(findings), f"Report: {path} (open it in a browser)"]))
