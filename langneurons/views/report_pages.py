"""The pages of a report's neurons: an index to search, and parts that are unpacked when they are opened."""

from typing import Any, NamedTuple

from markupsafe import Markup

from langneurons.analysis.profiles import Profiles
from langneurons.views.findings import Findings
from langneurons.views.pages import ANCHOR, page_content, rendered, visible

PART = 200  # pages that are unpacked together
WORDS = 4  # output tokens that the index shows of each neuron


class NeuronPages(NamedTuple):
    """The pages of the profiled neurons.

    Attributes:
        listed: One row per neuron, by language: its anchor, its language (the first), all its languages and output
            tokens, and the number of the part that has its page.
        parts: For each part, anchor -> page.
        first: The first page of the index.
    """

    listed: list[list[Any]]
    parts: list[dict[str, Markup]]
    first: Markup


def neuron_pages(findings: Findings, profiles: Profiles) -> NeuronPages:
    """Write the page of every profiled neuron, in brief."""
    results, pages = findings.beside_profiles, []
    for neuron in profiles.neurons:
        content = page_content(profiles, neuron, results)
        own = sorted(content["own"])
        words = [own[0] if own else "no language", " ".join(own), _words(profiles, neuron)]
        pages.append((words[0], neuron, words, rendered(content, brief=True)))
    pages.sort(key=lambda page: page[:2])
    anchors = [ANCHOR.format(*neuron) for _, neuron, *_ in pages]
    index = [[anchor, *pages[place][2], place // PART] for place, anchor in enumerate(anchors)]
    parts: list[dict[str, Markup]] = [{} for _ in range(0, len(pages), PART)]
    for anchor, *_, part in index:
        parts[part][anchor] = pages[len(parts[part]) + PART * part][3]
    return NeuronPages(index, parts, pages[0][3] if pages else Markup(""))


def _words(profiles: Profiles, neuron: tuple[int, int]) -> str:
    """The first tokens that a neuron promotes."""
    outputs = profiles[neuron].outputs
    promoted = outputs.loc[outputs["effect"] == "promoted", "token"]
    return " ".join(visible(str(token)) for token in promoted.head(WORDS))
