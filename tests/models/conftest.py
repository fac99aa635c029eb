"""Each tiny model is built and saved once a session, and loaded once with each backend."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from langneurons.models import ModelView, load_model, view
from tests.models.hugging_face import hf_sites
from tests.tiny_models import ARCHITECTURES, HOOKED, save_tiny

PAIRS = [(name, "hooked") for name in HOOKED] + [(name, "bridge") for name in ARCHITECTURES]


@dataclass
class Loaded:
    """A model loaded through load_model, and what the same checkpoint computes in plain transformers."""

    architecture: str
    folder: Path
    view: ModelView
    hf_model: Any
    hf: dict[str, list[torch.Tensor]]


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    return torch.randint(4, 101, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_tiny(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def load(folders, tokens):
    made: dict[tuple[str, str], Loaded] = {}

    def get(architecture: str, backend: str) -> Loaded:
        if (architecture, backend) not in made:
            folder = folders[architecture]
            hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
            model = load_model(folder, backend=backend)
            made[architecture, backend] = Loaded(
                architecture, folder, view(model), hf_model, hf_sites(hf_model, tokens)
            )
        return made[architecture, backend]

    return get


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def loaded(request, load) -> Loaded:
    return load(*request.param)


@pytest.fixture(params=[("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("opt", "bridge")], ids="-".join)
def some(request, load) -> Loaded:
    """Gated and plain MLPs, on both backends."""
    return load(*request.param)
