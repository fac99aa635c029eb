"""The pages cover what there is: every public name, command, error and notebook, and the site asks no network."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main
import yaml

import langneurons as ln
from langneurons import errors
from langneurons.cli import commands as cli
from langneurons.cli import finding, measuring  # noqa: F401 (they register the commands)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """YAML, whatever tags mkdocs' extensions use."""


Loader.add_multi_constructor("", lambda loader, suffix, node: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)  # noqa: S506


def pages(nav: list) -> list[str]:
    """The files of a navigation, in order."""
    found = []
    for entry in nav:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += pages(inside) if isinstance(inside, list) else [inside]
    return found


def documented() -> list[str]:
    """What the pages of the reference that stand in the navigation document."""
    texts = [(DOCS / page).read_text("utf-8") for page in pages(SITE["nav"]) if page.startswith("api/")]
    return re.findall(r"^::: (\S+)$", "\n".join(texts), flags=re.MULTILINE)


EXCEPTIONS = [name for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, Exception)]


def object_of(path: str) -> object:
    """What a dotted path names; a module that nothing has imported yet is imported."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        place, _, name = path.rpartition(".")
        return getattr(object_of(place), name)


def test_every_public_name_is_documented_once():
    names = [f"langneurons.{name}" for name in ln.__all__ if name not in ("__version__", *EXCEPTIONS)]
    names = [name for name in names if not inspect.ismodule(object_of(name))]
    names += [f"langneurons.plot.{name}" for name in ln.plot.__all__]
    assert [name for name in names if documented().count(name) != 1] == []


def test_nothing_is_documented_twice():
    assert len(documented()) == len(set(documented()))


@pytest.mark.parametrize("path", documented())
def test_what_is_documented_exists(path):
    assert object_of(path).__doc__


NOTEBOOKS = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_every_page_and_every_notebook_stands_in_the_navigation():
    assert {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | NOTEBOOKS == set(pages(SITE["nav"]))


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_every_error_has_a_page_that_begins_with_its_docstring(name):
    assert f"errors/{name}.md" in pages(SITE["nav"])
    page = (DOCS / "errors" / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {name}\n\n{getattr(errors, name).__doc__}\n")
    assert f"[{name}]({name}.md)" in (DOCS / "errors" / "index.md").read_text("utf-8")


def test_every_command_is_named():
    commands = typer.main.get_command(cli.app).commands
    page = (DOCS / "command_line.md").read_text("utf-8")
    assert [name for name in commands if f"`langneurons {name}" not in page] == []


def test_every_notebook_is_named():
    page = (DOCS / "index.md").read_text("utf-8")
    assert [path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem not in page] == []


def test_nothing_of_the_theme_is_fetched():
    assert SITE["theme"]["font"] is False
    assert not [place for place in (*SITE["extra_css"], *SITE.get("extra_javascript", [])) if "//" in place]


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "html",
    [
        '<script async src="https://example.org/a.js">',
        "<img src=//example.org/a.png>",
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        "<style>@import url(https://example.org/a.css)</style>",
    ],
)
def test_a_site_that_would_ask_the_network_is_refused(hooks, tmp_path, html):
    (tmp_path / "page.html").write_text(html)
    with pytest.raises(Exception, match="would ask the network: page.html"):
        hooks.on_post_build(config=SimpleNamespace(site_dir=tmp_path))


def test_links_for_the_reader_to_click_are_allowed_and_llms_txt_lists_the_pages(hooks, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text('<a href="https://arxiv.org">paper</a><script src="assets/a.js"></script>')
    monkeypatch.setattr(hooks, "PAGES", {"tour.html": "- [A tour](tour.html): Every part."})
    hooks.on_post_build(config=SimpleNamespace(site_dir=tmp_path, site_name="langneurons", site_description="Neurons."))
    assert (tmp_path / "llms.txt").read_text() == "# langneurons\n\n> Neurons.\n\n- [A tour](tour.html): Every part.\n"


def test_a_notebook_becomes_a_page_with_its_pictures_and_without_what_is_fetched(hooks):
    pictures = {}
    path = next((ROOT / "notebooks").glob("01_*.ipynb"))
    page = "\n\n".join(hooks.notebook_parts(path, pictures))
    assert page.startswith("# 1. Find a model's language neurons")
    assert "[Open in Colab](https://colab" in page
    assert not hooks.FETCHED.search(page)
    assert len(pictures) >= 4
    assert all(f"]({name})" in page and content.startswith(b"\x89PNG") for name, content in pictures.items())


def test_every_family_of_the_table_has_a_page_that_says_on_which_backends_it_was_checked(hooks):
    models = (DOCS / "models.md").read_text("utf-8")
    family_pages = hooks.family_pages(models)
    assert len(family_pages) == models.count("ForCausalLM`")
    assert "HookedTransformer | no |" in family_pages["gemma-2"]
    assert "does not put a beginning-of-sequence token" in family_pages["smollm2"]


@pytest.mark.parametrize("name", ["counted token", "`act`", "dose", "neutral", "detectable"])
def test_the_start_page_defines_the_words_that_other_pages_use(name):
    assert f"\n| {name} | " in (DOCS / "index.md").read_text("utf-8")
