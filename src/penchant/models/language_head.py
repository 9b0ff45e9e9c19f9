"""The language-model head that comes along with a reward model, for a language-model term.

Only the head and the embedding it may be tied to are read: the rest of the checkpoint is in the
reward model already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from penchant.errors import ModelError
from penchant.models import load


def put_language_head(model: Any, path: str, dtype: torch.dtype, hub: dict[str, Any]) -> None:
    """Adds `lm_head` from the language model at `path`; frozen unless tied to the embedding.

    It is not part of the model's state: neither saved nor missed.

    Args: `hub`: revision and trust_remote_code.
    Raises ModelError where no language model can be made of what is there.
    """
    causal = _heads_only(path, dtype, hub)
    head = causal.get_output_embeddings()
    if head.weight is causal.get_input_embeddings().weight:
        head.weight = model.get_input_embeddings().weight
    else:
        head.requires_grad_(False)
    model.lm_head = head
    model._register_state_dict_hook(_leave_out)
    model.register_load_state_dict_post_hook(_miss_not)


def _heads_only(path: str, dtype: torch.dtype, hub: dict[str, Any]) -> Any:
    """The language model without its decoder, read by transformers' own loading."""
    config = load.load_config(path, **hub)
    try:
        with torch.device("meta"), load.quietly():
            whole = AutoModelForCausalLM.from_config(
                config, trust_remote_code=hub["trust_remote_code"]
            )
        with load.quietly():
            model, found = _bare(type(whole)).from_pretrained(
                path, config=whole.config, dtype=dtype, output_loading_info=True, **hub
            )
    except load.UNREADABLE as error:
        raise ModelError(
            f"no language-model head could be loaded from {load.why_not(path, error)}"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"the model {path!r} lacks its language-model head ({missing[0]}); "
            "give a whole checkpoint of a causal language model"
        )
    return model


def _bare(kind: Any) -> Any:
    """The class, but what it builds keeps nothing besides its embedding and its head."""

    def build(self: Any, config: Any, *rest: Any, **given: Any) -> None:
        kind.__init__(self, config, *rest, **given)
        _prune(self, (self.get_input_embeddings(), self.get_output_embeddings()))

    # The name and the module are what transformers goes by.
    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def _prune(module: nn.Module, kept: Sequence[nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if any(child is one for one in kept):
            continue
        if any(one is inner for inner in child.modules() for one in kept):
            _prune(child, kept)
        else:
            setattr(module, name, nn.Identity())


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A state of the model is that of a reward model: what comes along is always the base's."""
    for name in [name for name in state if name.startswith(f"{prefix}lm_head.")]:
        del state[name]


def _miss_not(module: nn.Module, incompatible: Any) -> None:
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if ".lm_head." not in f".{name}"]
