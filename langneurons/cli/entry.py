"""The command line: the same names as in Python, thin over the same functions.

Exit status: 0 done; 2 the user can mend it (one or two lines on standard error); 130 interrupted, run again to go on.
"""

import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer

from langneurons.errors import LangNeuronsError, LangNeuronsWarning

COMMANDS = {
    "commands": ("demo", "record", "identify", "perplexity", "evaluate", "validity", "models"),
    "analysis_commands": ("ablate",),
    "comparison_commands": ("compare",),
    "probe_commands": ("probe",),
    "report_commands": ("profile", "report"),
    "study_commands": ("study",),
    "training_commands": ("finetune", "transfer"),
}  # by the module that registers them
INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    help="Find the language-specific neurons of multilingual language models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Languages = Annotated[str | None, typer.Option(help="Comma-separated codes, for example en,hi; all by default.")]
Backend = Annotated[str, typer.Option(help="auto, hooked or bridge.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own by default.")]
RecordedSite = Annotated[str | None, typer.Option(help="A recorded site; the first by default.")]
TextColumn = Annotated[str, typer.Option(help="Column of the text in jsonl, parquet and hub data sets.")]
Device = Annotated[str | None, typer.Option(help="For example cpu or cuda.")]
Where = Annotated[
    str | None, typer.Option("--executor", help="Where to run: here by default; ray, or a cluster's ray://host:port.")
]


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False) -> None:
    """Find the language-specific neurons of multilingual language models."""


def register(command: str | None = None) -> None:
    """Import the module of a command, or those of all where it is none: what one needs takes seconds to import."""
    of_it = [module for module, names in COMMANDS.items() if command in names]
    for module in of_it or COMMANDS:
        import_module(f"langneurons.cli.{module}")


def main() -> None:
    """Run the command line and turn errors into a sentence and an exit status."""
    debug = "--debug" in sys.argv
    warnings.showwarning = _warn
    try:
        register(next((word for word in sys.argv[1:] if not word.startswith("-")), None))
        # Not standalone: typer would answer Ctrl-C itself, without saying that the work goes on.
        status = app(standalone_mode=False)
    except LangNeuronsError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except typer.TyperException as error:
        cast(Any, error).show()
        sys.exit(2)
    if status == INTERRUPTED:
        _fail("interrupted. Run the same command again to go on from here.", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say our own warnings in a sentence, others as Python does."""
    ours = issubclass(category, LangNeuronsWarning)
    text = f"langneurons: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _fail(message: str, status: int) -> NoReturn:
    print(f"langneurons: {message}", file=sys.stderr)
    sys.exit(status)
