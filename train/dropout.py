"""One dropout rate for a whole model, instead of whatever its published configuration says.

Dropout draws per token and process, so with a rate above 0 the number of processes changes the numbers that are drawn:
the gradient is then the same in expectation only. The Llama family was pretrained without; BERT's folders say 0.1.
"""

from __future__ import annotations

from typing import Any

_RATES = ("attention_dropout", "dropout")  # floats of attention modules, handed on to the attention function


def set_dropout(model: Any, rate: float) -> int:
    """Set every dropout of a model in place; the model's configuration stays. Returns how many there are."""
    import torch

    changed = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
            changed += 1
        for name in _RATES:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, rate)
                changed += 1
    return changed
