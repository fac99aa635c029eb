"""Recordings of made-up neurons that respond to a document's language, to its topic, or to nothing."""

import torch

import langneurons as ln
from tests.planted.statistics import statistics_from

LABELS = ("en", "hi", "ur", "zh")
LAYERS, WIDTH = 2, 150
DOCUMENTS, LENGTH = 60, 20
OF_LANGUAGE = {index: slice(index * 6, index * 6 + 6) for index in range(len(LABELS))}
OF_TOPIC = {index: slice(30 + index * 3, 33 + index * 3) for index in range(len(LABELS))}
EVERYWHERE = slice(60, 70)


def recording(kind: str, seed: int = 0) -> ln.ActivationStats:
    """Statistics of as many labels as there are languages.

    Args:
        kind: "real": a label is a language, topics are mixed; "shuffled": labels mean nothing; "source": all documents
            are in one language, topics are mixed; "topic": all are in one language, a label is a topic.
        seed: Seed for documents and activations.
    """
    random = torch.Generator().manual_seed(seed)
    base = torch.rand(LAYERS, WIDTH, generator=torch.Generator().manual_seed(7)) * 0.5 + 0.1
    values, documents = {}, {}
    for position, label in enumerate(LABELS if kind == "real" else [f"part-{i}" for i in range(len(LABELS))]):
        language, topic = _documents(kind, position, random)
        share = base.expand(DOCUMENTS, LAYERS, WIDTH).clone()
        for index, own in OF_LANGUAGE.items():
            share[..., own] = torch.where(language == index, 0.85, 0.01)[:, None, None]
        for index, own in OF_TOPIC.items():
            share[..., own] = torch.where(topic == index, 0.85, 0.01)[:, None, None]
        share[..., EVERYWHERE] = 0.97
        share = share.repeat_interleave(LENGTH, dim=0)
        size = 0.2 + torch.randn(share.shape, generator=random).abs()
        size[..., EVERYWHERE] *= 3
        values[label] = torch.where(torch.rand(share.shape, generator=random) < share, size, -0.2 * size)
        documents[label] = torch.arange(DOCUMENTS).repeat_interleave(LENGTH)
    return statistics_from(values, documents)


def _documents(kind: str, position: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    mixed = torch.randint(0, len(LABELS), (DOCUMENTS,), generator=random)
    also_mixed = torch.randint(0, len(LABELS), (DOCUMENTS,), generator=random)
    same = torch.full((DOCUMENTS,), position)
    language = {"real": same, "shuffled": mixed}.get(kind, torch.zeros(DOCUMENTS, dtype=torch.long))
    return language, same if kind == "topic" else also_mixed
