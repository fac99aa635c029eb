"""The README of a baked checkpoint: where its weights come from, under which licence, and how they are loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, hf_hub_download, metadata_load

from langneurons.baking.checkpoint import Checkpoint

_LICENCE = ("license", "license_name", "license_link")


def card_of(
    checkpoint: Checkpoint, name: str, changes: Mapping[str, Sequence[str]], facts: Mapping[str, object]
) -> str:
    """Write the README of a baked checkpoint.

    Args:
        checkpoint: The checkpoint that it was made from.
        name: Name of its folder or repository, by which it is loaded.
        changes: Heading -> what was written into the weights, in order.
        facts: What else there is to say, by name; None leaves one out.
    """
    licence = licence_of(checkpoint)
    head: Any = {"library_name": "transformers", "tags": ["langneurons"], **licence}
    head |= {"base_model": checkpoint.name} if checkpoint.on_hub else {}
    named = ", ".join(filter(None, (licence.get("license_name"), licence.get("license"), licence.get("license_link"))))
    facts = {"Base model": checkpoint.name, "Revision": checkpoint.revision, **facts}
    facts["Licence of the base model"] = named or "not known; see the base model"
    sections = [
        f"## {heading}\n\n" + "".join(f"{place}. {line}\n" for place, line in enumerate(lines, 1))
        for heading, lines in changes.items()
        if lines
    ]
    listed = "\n".join(sections)
    about = "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact is not None)
    return f"""---
{ModelCardData(**head).to_yaml()}
---

# {name}

The weights of {checkpoint.name}, with the changes below written into them. Any engine runs them without langneurons.

{about}

{listed}
## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""


def licence_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Read a checkpoint's licence off the first lines of its README; empty where they do not say it."""
    try:
        file = (
            Path(hf_hub_download(checkpoint.source, "README.md", revision=checkpoint.revision))
            if checkpoint.on_hub
            else checkpoint.folder / "README.md"
        )
        metadata: Any = metadata_load(file) or {}
    except Exception:  # no such file, no network, or lines of another form: the licence is not known
        return {}
    return {name: str(metadata[name]) for name in _LICENCE if isinstance(metadata, dict) and metadata.get(name)}
