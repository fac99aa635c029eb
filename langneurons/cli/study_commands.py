"""The command that runs a whole study from one file."""

from pathlib import Path
from typing import Annotated

import typer

from langneurons.cli.entry import Where, app
from langneurons.errors import StudyError
from langneurons.study.forecasting import as_text
from langneurons.study.run_folder import BLOCKED, FAILED
from langneurons.study.study import Study


@app.command("study")
def study_command(
    config: Annotated[Path, typer.Argument(help="A TOML file, or the directory of an earlier run.")],
    out: Annotated[Path | None, typer.Option(help="Directory to run in; runs/<name of the study> by default.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Steps whose name begins with this, and what they depend on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is left to do and what it takes.")] = False,
    speed: Annotated[
        float | None,
        typer.Option(help="With --dry-run: operations a second that a machine reaches, such as 160e12; this one's."),
    ] = None,
    executor: Where = None,
    status: Annotated[bool, typer.Option("--status", help="List what became of every step.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the study with every default.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Verify every byte of what is done.")] = False,
    compare: Annotated[Path | None, typer.Option(help="Hold it against another: its file or directory.")] = None,
) -> None:
    """Run a whole study: what is done stays done, and the same command goes on after an interruption."""
    study = Study.from_toml(config, out)
    if show:
        print(study.show())
    elif dry_run:
        print(as_text(study.forecast(speed), study.folder.path, speed))
    elif status:
        print(study.status().to_string(index=False, na_rep=""))
    elif check:
        study.check()
        print(f"Every file of {len(study.files())} is as it was written.")
    elif compare is not None:
        print(study.compare(Study.from_toml(compare)).to_string(index=False))
    else:
        _run(study, only, executor)


def _run(study: Study, only: str | None, executor: str | None) -> None:
    states = study.run(only, print, executor=executor)
    broken = states[states["state"].isin([FAILED, BLOCKED])]
    if len(broken):
        told = zip(broken["step"], broken["state"], broken["why"], strict=True)
        listed = "; ".join(" ".join(filter(None, one)) for one in told)
        raise StudyError(f"{len(broken)} of {len(states)} steps are not done: {listed}")
    if only is None:
        print(f"Report: {study.report()} (open it in a browser)")
