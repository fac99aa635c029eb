"""Training only them: masked updates of chosen neurons, fine-tuning, and the transfer experiment."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "finetuned": ["Finetuned"],
        "transfer_table": ["Transfer"],
    },
)
