"""The commands that train: finetune and transfer."""

from pathlib import Path
from typing import Annotated, Any

import typer

import langneurons as ln
from langneurons.cli.entry import Backend, Device, Dtype, Where, app
from langneurons.cli.parsing import MethodName, MethodOptions, codes, listed, make_method
from langneurons.errors import TrainingError
from langneurons.study.wording import language_patches
from langneurons.training.conditions import CONDITIONS, NONE, conditions
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedLoRA
from langneurons.training.transfer import check_apart, transfer_experiment

Model = Annotated[str, typer.Argument(help="babel, a local folder, or a hub name.")]
TaskFolder = Annotated[str, typer.Argument(help="A folder of XNLI or XQuAD files, facebook/xnli, google/xquad, ...")]
Kind = Annotated[str, typer.Option(help="xnli: a head is trained; xquad: answers are generated.")]
Source = Annotated[str, typer.Option(help="Language of the training data.")]
TrainSplit = Annotated[str, typer.Option(help="Part to train on: train, validation or test.")]
TestSplit = Annotated[str, typer.Option(help="Part to evaluate on.")]
TrainItems = Annotated[int | None, typer.Option(help="Premises or questions to train on; all by default.")]
TestItems = Annotated[int | None, typer.Option(help="Premises or questions a language to evaluate on; all by default.")]
Rank = Annotated[int, typer.Option(help="Of LoRA.")]
Projections = Annotated[str, typer.Option(help="Of the neurons, comma-separated: gate, up, down.")]
Attention = Annotated[str, typer.Option(help="Of attention, comma-separated: q, k, v, o; empty trains none.")]
Epochs = Annotated[int, typer.Option(help="How often every example is seen.")]
Steps = Annotated[int | None, typer.Option(help="How many steps instead.")]
BatchSize = Annotated[int, typer.Option(help="Examples a step.")]
Rate = Annotated[float, typer.Option("--learning-rate", help="The highest.")]
Neurons = Annotated[Path | None, typer.Option(help="A file that identify wrote.")]


@app.command("finetune")
def finetune_command(
    model: Model,
    task: TaskFolder,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the result; the same command goes on.")],
    neurons: Neurons = None,
    condition: Annotated[str | None, typer.Option(help="What to train: none, source, target, random, all, ...")] = None,
    language: Annotated[str | None, typer.Option(help="The target language, whose neurons are trained.")] = None,
    source: Source = "en",
    kind: Kind = "xnli",
    train_split: TrainSplit = "train",
    test_split: TestSplit = "test",
    train_items: TrainItems = None,
    test_items: TestItems = None,
    rank: Rank = 8,
    projections: Projections = "gate",
    attention: Attention = "q,k,v,o",
    epochs: Epochs = 1,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    learning_rate: Rate = 1e-4,
    seed: Annotated[int, typer.Option(help="Of first values and of the order of examples.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Fine-tune the neurons of a language, with attention and a head, and evaluate what came of it."""
    places = [source] if language is None else list(dict.fromkeys([source, language]))
    train, test = _tasks(kind, task, train_split, test_split, places, train_items, test_items, seed)
    check_apart(train, test, source, "training")
    name = condition or (NONE if neurons is None else "source" if language is None else "target")
    chosen = None
    if name != NONE:
        if neurons is None or (language is None and "target" in name):
            raise TrainingError(f"The condition {name!r} needs --neurons{', and --language' * ('target' in name)}.")
        known = ln.NeuronSet.load(neurons)
        chosen = conditions(known, source, [language] if language else [], [name], [seed])[0].neurons
    parts = tuple(listed(projections)), tuple(listed(attention))
    lora = None if chosen is None and not parts[1] else MaskedLoRA(chosen, rank, 16, *parts, seed)
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    options: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "seed": seed}
    tuned = finetune(loaded, train, lora, languages=[source], learning_rate=learning_rate, out=out, **options)
    print(tuned)
    print(tuned.evaluate(loaded, test, places, batch_size=batch_size))
    print(f"Written to {tuned.save(out / 'finetuned')}")


@app.command("transfer")
def transfer_command(
    model: Model,
    task: TaskFolder,
    out: Annotated[Path, typer.Option(help="Folder that keeps what was trained; the same command goes on there.")],
    targets: Annotated[str, typer.Option(help="Comma-separated languages to transfer to.")],
    source: Source = "en",
    neurons: Neurons = None,
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that record wrote: identify neurons, match random ones in magnitude.")
    ] = None,
    method: MethodName = "lape",
    option: MethodOptions = None,
    conditions: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(CONDITIONS),
    seeds: Annotated[int, typer.Option(help="Training seeds; below six no difference gets a p-value.")] = 6,
    draws: Annotated[int, typer.Option(help="Draws of random neurons a seed.")] = 1,
    patch: Annotated[
        list[str] | None, typer.Option(help="Evaluate under a patch of each target's neurons too: 0, mean, p90, ...")
    ] = None,
    kind: Kind = "xnli",
    train_split: TrainSplit = "train",
    test_split: TestSplit = "test",
    train_items: TrainItems = None,
    test_items: TestItems = None,
    rank: Rank = 8,
    projections: Projections = "gate",
    attention: Attention = "q,k,v,o",
    epochs: Epochs = 1,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    learning_rate: Rate = 1e-4,
    seed: Annotated[int, typer.Option(help="Of the choice of items and of the resampling.")] = 0,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    executor: Where = None,
) -> None:
    """Train neurons on one language under several conditions and seeds, and measure what that is worth in others."""
    places = [source, *(codes(targets) or [])]
    train, test = _tasks(kind, task, train_split, test_split, places, train_items, test_items, seed)
    stats = None if statistics is None else ln.ActivationStats.load(statistics)
    if neurons is not None:
        known = ln.NeuronSet.load(neurons)
    elif stats is not None:
        known = make_method(method, option or []).identify(stats)
    else:
        raise TrainingError("Whose neurons? Give --neurons, or --statistics to identify them.")
    options: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "seed": seed}
    options |= {"projections": tuple(listed(projections)), "attention": tuple(listed(attention)), "rank": rank}
    options |= {"learning_rate": learning_rate, "patches": language_patches(known, patch or [], stats)}
    options |= {"conditions": listed(conditions), "seeds": seeds, "draws": draws, "stats": stats, "out": out}
    options["executor"] = executor
    loaded = ln.load_model(model, backend=backend, dtype=dtype, device=device)
    found = transfer_experiment(loaded, train, test, known, source, places[1:], **options)
    written = found.save(out / "transfer")
    print(f"{found}\nWritten to {written}")
    if len(found.conditions) > 1:
        print(f"\n{found.effects(found.reference)}")
    if patch:
        print(f"\n{found.patch_effects()}")


def _tasks(
    kind: str,
    folder: str,
    train_split: str,
    test_split: str,
    languages: list[str],
    train_items: int | None,
    test_items: int | None,
    seed: int,
) -> tuple[Any, Any]:
    """What is trained on, in the first language, and what is evaluated on, in all."""
    train = ln.tasks.load_task(kind, folder, languages[:1], train_split, items=train_items, seed=seed)
    return train, ln.tasks.load_task(kind, folder, languages, test_split, items=test_items, seed=seed)
