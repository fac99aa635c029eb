"""The command that asks what neurons carry besides a language."""

from pathlib import Path
from typing import Annotated, Any

import typer

import langneurons as ln
from langneurons import storage
from langneurons.analysis.selectivity.polysemanticity import polysemanticity
from langneurons.analysis.selectivity.texts import LabelledTexts
from langneurons.cli.entry import Backend, Device, Dtype, Languages, app
from langneurons.cli.parsing import codes, listed
from langneurons.errors import StatisticsError, TaskError
from langneurons.study.wording import parsed


@app.command("probe")
def probe_command(
    model: Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")],
    neurons: Annotated[Path, typer.Argument(help="A file that identify wrote.")],
    out: Annotated[Path, typer.Option(help="Folder that keeps what was read and found; the same command goes on.")],
    xnli: Annotated[str | None, typer.Option(help="A folder of XNLI files, or facebook/xnli.")] = None,
    xquad: Annotated[
        str | None, typer.Option(help="A folder of XQuAD files: where in its paragraph is an answer?")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A parquet file with the columns language, item, cluster, text and label.")
    ] = None,
    languages: Languages = None,
    position: Annotated[
        str, typer.Option(help="A neuron's value on a text: mean over its tokens, or its last one.")
    ] = ("mean"),
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote, to match controls by magnitude too.")
    ] = None,
    controls: Annotated[int, typer.Option(help="Draws of matched control neurons.")] = 20,
    permutations: Annotated[int, typer.Option(help="Exchanges of labels and of languages a test.")] = 1000,
    probe_sizes: Annotated[str, typer.Option(help="Neurons a probe reads, comma-separated; empty for no probes.")] = (
        "1,2,4,8,16"
    ),
    items: Annotated[int | None, typer.Option(help="Items to draw, in whole clusters; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a forward.")] = 8,
    seed: Annotated[int, typer.Option(help="Of items, controls, exchanges and probes.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Ask whether a language's neurons carry a task too: shares, tests, probes, beside matched controls."""
    wanted = codes(languages)
    given = [one for one in (xnli, xquad, texts) if one is not None]
    if len(given) != 1:
        raise TaskError(f"Give exactly one of --xnli, --xquad and --texts, not {len(given)}.")
    task = _labelled(texts) if texts else ln.XNLI.load(xnli, wanted) if xnli else ln.XQuAD.load(str(xquad), wanted)
    chosen = ln.NeuronSet.load(neurons)
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    options: dict[str, Any] = {"position": position, "controls": controls, "permutations": permutations}
    options |= {"probe_sizes": _sizes(probe_sizes), "max_items": items, "stats": stats, "batch_size": batch_size}
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    found = polysemanticity(loaded, chosen, task, wanted, seed=seed, out=out, **options)
    print(f"{found}\n\n{found.table(top=10)}")
    if len(found.probes):
        print(f"\n{found.probes_table()}")
    print(f"Written to {found.save(out / 'polysemanticity')}")


def _labelled(path: Path) -> LabelledTexts:
    table = storage.read_table(path, foreign=True)
    if "language" not in table.columns:
        raise TaskError(f"{path} has no column 'language', only {', '.join(map(str, table.columns))}.")
    return LabelledTexts({str(language): part for language, part in table.groupby("language", sort=False)}, path.stem)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = [parsed(one) for one in listed(text)]
    for size in sizes:
        if not isinstance(size, int):
            raise StatisticsError(f"--probe-sizes are whole numbers, such as 1,4,16, not {size!r}.")
    return tuple(sizes)
