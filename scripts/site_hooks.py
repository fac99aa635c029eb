"""What mkdocs does beside building pages: figures, notebooks, families of models, examples of docstrings, llms.txt.

It also refuses to build a site that would ask the network.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from langneurons import settings

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?![^>]*\brel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//[^\s"')]+"""
)


BADGE = re.compile(r"\[!\[(.*?)\]\(https://.*?\)\]\((.*?)\)")  # a picture from elsewhere becomes a link in words
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
PAGES: dict[str, str] = {}  # address -> title and first sentences, in the order of the navigation


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Put the pictures of figures/, the notebooks and the families of models beside the pages."""
    for picture in sorted((ROOT / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(notebook_parts(path, pictures))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, text in family_pages((ROOT / "docs" / "models.md").read_text("utf-8")).items():
        files.append(File.generated(config, f"models/{name}.md", content=text))
    return files


def notebook_parts(path: Path, pictures: dict[str, bytes]) -> Iterator[str]:
    """A notebook as Markdown, part by part; what its outputs show is added to ``pictures`` by name."""
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield BADGE.sub(r"[\1](\2)", source)
            continue
        code = f"```python\n{source}\n```"
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
        yield f'<details markdown="1"><summary>Code</summary>\n\n{code}\n\n</details>' if hidden else code
        for place, output in enumerate(cell["outputs"]):
            yield _output(output, f"{path.stem}-{number}-{place}.png", pictures)


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    """An output as Markdown: its picture, its table, or its text."""
    data = {
        kind: "".join(content) for kind, content in output.get("data", {}).items() if isinstance(content, list | str)
    }
    if "image/png" in data:
        pictures[name] = base64.b64decode(data["image/png"])
        return f"![What the cell above shows]({name})"
    if "text/html" in data:
        lines = STYLE.sub("", data["text/html"]).splitlines()
        return '<div class="ln-output">' + "\n".join(line.strip() for line in lines if line.strip()) + "</div>"
    text = data.get("text/plain", "".join(output.get("text", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def family_pages(models: str) -> dict[str, str]:
    """Family -> its page: what the table of docs/models.md says of it, in words, and what its tests check."""
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in models.splitlines() if "ForCausalLM" in row
    ]
    return {row[0]: FAMILY.format(*row, start="puts" if row[5] == "yes" else "does not put") for row in rows}


FAMILY = """# Models of the family {0}

Checkpoints: {1}. Architecture: `{2}`.

| backend | |
|---|---|
| HookedTransformer | {3} |
| TransformerBridge | {4} |

The tokenizer {start} a beginning-of-sequence token before a text, and so does langneurons.
Stop tokens of generation: {6}.

## What was checked

On a small random checkpoint with this family's configuration and kind of tokenizer, special tokens, stop tokens and
chat template, on every backend marked "yes":

- logits equal those of transformers, also with a cache and with left padding, and every site's hook runs once per
  layer;
- statistics are recorded, neurons patched, and nothing of a patch stays behind;
- greedy generation equals that of transformers for 16 tokens, and stops at each of the stop tokens;
- chosen neurons are trained and nothing else changes; peft loads what was trained.

Full weights were not run, except those of SmolLM2-135M (`make test-pretrained`); `ln.load_model` makes the first check
again whenever it loads a model.

[All families](../models.md#families)
"""


FAMILY_ROW = re.compile(r"^\| (\S+) \|(?=.*ForCausalLM)", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the families of models to their pages, and keep each page's title and first paragraph for llms.txt."""
    if page.file.src_uri == "models.md":
        markdown = FAMILY_ROW.sub(r"| [\1](models/\1.md) |", markdown)
    paragraphs = (" ".join(part.split()) for part in re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL).split("\n\n"))
    first = next((text for text in paragraphs if text[:1].isalpha() or text.startswith(("**", "`"))), "")
    PAGES[page.url] = f"- [{page.title}]({page.url}): {first.replace('**', '')}"
    return markdown


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> None:
    """Begin llms.txt anew, in the order of the navigation."""
    PAGES.clear()
    PAGES.update((page.url, "") for page in nav.pages)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse a site of which a script, style, picture or frame comes from elsewhere, and write llms.txt."""
    found = [
        f"{path.relative_to(config.site_dir)}: {match[0][:100]}"
        for path in sorted(Path(config.site_dir).rglob("*"))
        if path.suffix in (".html", ".css")
        for match in FETCHED.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("The site would ask the network: " + "; ".join(found[:5]))
    lines = [f"# {config.site_name}", f"> {config.site_description}", "\n".join(filter(None, PAGES.values()))]
    Path(config.site_dir, "llms.txt").write_text("\n\n".join(lines) + "\n", "utf-8")


def fields(kind: type) -> str:
    """The section of a docstring that lists a settings object's fields; "" for other classes."""
    if not issubclass(kind, settings.Settings) or not kind.model_fields:
        return ""
    lines = [
        f"    {name}: {field.description} Default: `{field.default!r}`." for name, field in kind.model_fields.items()
    ]
    return "\n\nAttributes:\n" + "\n".join(lines)


class Docstrings(Extension):
    """Read "Example:" in a docstring as griffe reads "Examples:", and list the fields of settings objects."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section, if there is one, and add the fields, if it is a settings object."""
        if obj.docstring is not None:
            if obj.parent is not None and obj.parent.path == settings.__name__ and obj.is_class:
                obj.docstring.value += fields(getattr(settings, obj.name))
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
