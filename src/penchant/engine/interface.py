"""Hooks into transformers' attention interface, so that unmodified decoders run packed trees.

For the length of a packed call, forward and backward, a model's attention implementation is ours;
before and after it the model is as its owner left it. An implementation without an entry among
transformers' mask functions gets no mask, and trees need none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.autograd import Variable
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penchant.engine.attention import Scoring, tree_attention
from penchant.engine.heads import of_own_file
from penchant.errors import ModelError

NAME = "penchant_trees"
SPANS = "penchant_spans"
"""Keyword argument that carries the spans through a model to its attention."""
_KNOWN = frozenset(
    {SPANS, "is_causal", "position_ids", "cache_position", "use_cache", "sliding_window"}
    | {"softcap", "s_aux", "scaling", "dropout", "output_attentions", "output_hidden_states"}
    | {"output_router_logits", "return_dict", "layer_idx", "num_items_in_batch"}
)
"""Keywords that are read here, or change nothing of the scores."""


_originals: dict[int, str] = {}
"""By id of a config: its owner's implementation, while ours is there."""
_serves: list[bool] = [False]
"""Whether calls without trees go to it just now."""


@contextmanager
def installed(model: Any, *, serves_others: bool = False) -> Iterator[None]:
    """Within it, a model's attention takes packed trees.

    Args:
        serves_others: calls without trees go to the attention of before; else they are an error.
            A backward pass may meet both, where layers that checkpoint run forward again.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    configs = list({id(part.config): part.config for part in parts}.values())
    before = [config._attn_implementation for config in configs]
    own = {id(c): name for c, name in zip(configs, before, strict=True) if name != NAME}
    _originals.update(own)
    _serves.append(serves_others)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        _serves.pop()
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        for key in own:
            del _originals[key]


def installed_in_backward(model: Any, hidden: Tensor) -> None:
    """Has the attention be ours again while gradients of the model's last hidden states pass on.

    Layers that checkpoint their activations run forward a second time then. Call it once per
    forward pass: what is put back at the end is what was there at the start.
    """

    def begin(grad: Tensor) -> None:
        stack = ExitStack()
        stack.enter_context(installed(model, serves_others=True))
        Variable._execution_engine.queue_callback(stack.close)

    if hidden.requires_grad:
        hidden.register_hook(begin)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """What transformers calls: [1, H, N, D] in, [1, N, H, D] out."""
    spans = kwargs.get(SPANS)
    if spans is None:
        name = _originals.get(id(getattr(module, "config", None)))
        if name is None or not _serves[-1]:
            raise ModelError("it keeps keyword arguments from its attention")
        own = of_own_file(module, "eager_attention_forward")
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, own)
        return function(module, query, key, value, attention_mask, **kwargs)
    unknown = sorted({name for name, given in kwargs.items() if given is not None} - _KNOWN)
    if unknown:
        raise ModelError(f"its attention uses {', '.join(unknown)}, which trees do not support")
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise ModelError("its attention has a mask of its own, or looks ahead")
    if kwargs.get("dropout"):
        raise ModelError("attention dropout is on")
    scaling = kwargs.get("scaling")
    scoring = Scoring(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks_H=kwargs.get("s_aux"),
    )
    # Some architectures view the output, which needs it token by token in memory.
    return tree_attention(query, key, value, spans, scoring).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
