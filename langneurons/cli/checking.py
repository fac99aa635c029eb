"""Commands that ask what methods respond to."""

from typing import Annotated

import typer

from langneurons.cli.commands import command
from langneurons.cli.finding import Model, TextOptions, Texts, keep, listed, method_of
from langneurons.settings import Altering, Recording, Run
from langneurons.study.tables import ModelOptions


@command()
def survival(
    model: Model,
    corpus: Texts,
    method: Annotated[
        list[str] | None,
        typer.Option(help="lape, or with options lape:top=0.01,filter_quantile=0.9; repeatable; by default lape."),
    ] = None,
    *,
    text: TextOptions,
    altering: Altering,
    recording: Recording,
    run: Run,
    options: ModelOptions,
) -> None:
    """Ask how many neurons stay when text is altered: is it language or script, language or words?"""
    from langneurons.analysis.validity import survival as survival_of_methods

    methods = {}
    for words in method or ("lape",):
        name, _, fields = words.partition(":")
        methods[words] = method_of(name, listed(fields))
    texts, settings = text.load(corpus, shuffled=False), {"altering": altering, "recording": recording, "run": run}
    result = survival_of_methods(methods, options.load(model), texts, seed=text.seed, **settings)
    keep(result, run, "survival")
    print(result)
