"""What mkdocs does beside building pages: figures, examples of docstrings, and no site that would ask the network."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from langneurons import settings

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?![^>]*\brel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//[^\s"')]+"""
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Put the pictures of figures/ beside the pages, where index.md shows them."""
    for picture in sorted((ROOT / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse a site of which a script, style, picture or frame comes from elsewhere."""
    found = [
        f"{path.relative_to(config.site_dir)}: {match[0][:100]}"
        for path in sorted(Path(config.site_dir).rglob("*"))
        if path.suffix in (".html", ".css")
        for match in FETCHED.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("The site would ask the network: " + "; ".join(found[:5]))


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
