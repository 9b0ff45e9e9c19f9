"""Reward models: a decoder with a scalar head, made from a language model or read as saved.

What is made is transformers' own `*ForSequenceClassification` with one label and a head `score`
without bias, so that a checkpoint loads with `AutoModelForSequenceClassification` anywhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from penchant.errors import ModelError
from penchant.models import load
from penchant.models.config import ModelConfig
from penchant.models.language_head import put_language_head
from penchant.models.reward_settings import (
    ADAPTER_SETTINGS,
    KEY,
    Pooling,
    RewardSettings,
    put_settings,
    settings_of,
)

_OTHER_HEAD = re.compile(r"(^|\.)(v|value|reward|rm|regression)_?(head|layer)\b")
"""Parameters of reward models that are built otherwise."""


def load_reward_model(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    seed: int,
    pooling: Pooling | None = None,
    with_language_head: bool = False,
    dropout: bool = False,
) -> Any:
    """A reward model to be trained: a language model with a fresh head, or one with its own.

    A fresh head is drawn from N(0, 1 / (width + 1)), as in Stiennon et al. 2020
    (https://arxiv.org/abs/2009.01325, appendix B.1). An adapter folder comes as a PEFT model that
    goes on training.

    Args:
        config: where the weights lie; `adapter` and `gradient_checkpointing` are the caller's.
        dtype: of the weights in memory.
        seed: decides a fresh head, and nothing else does.
        pooling: None: the checkpoint's own, "last" where it names none.
        with_language_head: keep the language model's head beside, as `lm_head`, for log-
            probabilities. It is not trained, unless it is the embedding's matrix, nor saved.
        dropout: whether the model's own dropout stays on.
    Raises:
        ModelError: nothing loadable there; the architecture has no such head.
    """
    hub: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    place = _Place(config.path, dtype, hub, config.quantization, dropout, with_language_head)
    model = _adapter(place, True) if load.is_adapter(config.path) else _whole(place, seed)
    if pooling is not None:
        kept = asdict(settings_of(model.config)) | {"pooling": pooling}
        put_settings(model, RewardSettings(**kept))
    return model


def read_reward_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    base: str | None = None,
) -> Any:
    """A trained reward model, for scoring: decoder, encoder or adapter folder; dropout off.

    Args:
        base: of an adapter: its base model, where it is not at the place that the adapter names.

    Raises ModelError where there is none, or it has another head than one score.
    """
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    place = _Place(path, dtype, hub, quantization)
    return _adapter(place, False, base) if load.is_adapter(path) else _whole(place, None)


def is_decoder(model: Any) -> bool:
    """Whether a reward model scores by a linear map, without bias, of a decoder's hidden states.

    Any other is an encoder's, with a head of its own.
    """
    head = getattr(model, "score", None)
    return isinstance(head, nn.Linear) and head.bias is None and head.out_features == 1


@dataclass(frozen=True)
class _Place:
    """Where weights lie, and what is wanted of them."""

    path: str
    dtype: torch.dtype
    hub: dict[str, Any]
    quantization: str | None = None
    dropout: bool = False
    language_head: bool = False


def _whole(place: _Place, seed: int | None) -> Any:
    """The model, with a fresh head of this seed where it has none; None: it must have one."""
    config = load.load_config(place.path, **place.hub)
    decoder = _check_shape(config, place)
    if not decoder and seed is not None:
        raise ModelError(
            f"{place.path!r} ({config.model_type}) scores by a head of its own, not by a linear "
            "one without bias on a decoder; such a model can score, not be trained here"
        )
    model, fresh = _read(place)
    if fresh and seed is None:
        raise ModelError(
            f"{place.path!r} is no reward model: it has no head `score`; train one with "
            "penchant reward, or name one"
        )
    if fresh:
        _draw(model.score, seed or 0)
    if not place.dropout:
        load.silence_dropout(model)
    if place.language_head and not fresh:
        raise ModelError(
            f"{place.path!r} is a reward model, which holds no language-model head; the "
            "language-model term needs a start from a language model"
        )
    if place.language_head:
        put_language_head(model, place.path, place.dtype, place.hub)
    put_settings(model, settings_of(config))
    return model


def _check_shape(config: Any, place: _Place) -> bool:
    """Whether it is a decoder with a scalar head. Raises ModelError before weights are read."""
    remote = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and (
        "AutoModelForSequenceClassification" not in remote
    ):
        raise ModelError(
            f"{place.path!r} is of architecture {config.model_type}, for which transformers has no "
            "AutoModelForSequenceClassification, so no reward model can be made of it"
        )
    is_classifier = any("ForSequenceClass" in name for name in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise ModelError(
            f"{place.path!r} is a classifier of {config.num_labels} labels; a reward model has "
            "num_labels 1"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{place.path!r} ({config.model_type}) is an encoder with a decoder; reward models "
            "are decoders, or encoders for scoring only"
        )
    config.num_labels = 1
    with torch.device("meta"), load.quietly():
        shape = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=place.hub["trust_remote_code"]
        )
    return is_decoder(shape)


def _read(place: _Place) -> tuple[Any, bool]:
    """The model, and whether its head is not from the checkpoint."""
    kwargs: dict[str, Any] = dict(place.hub)
    if place.quantization is not None:
        quantised = load.quantization_config(place.quantization, place.dtype)
        quantised.llm_int8_skip_modules = ["score"]
        kwargs["quantization_config"] = quantised
    try:
        with load.quietly():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                place.path, num_labels=1, dtype=place.dtype, output_loading_info=True, **kwargs
            )
    except load.UNREADABLE as error:
        why = load.why_not(place.path, error)
        raise ModelError(f"no reward model could be loaded from {why}") from error
    model, found = loaded
    other = sorted(name for name in found["unexpected_keys"] if _OTHER_HEAD.search(name))
    if other:
        raise ModelError(
            f"{place.path!r} holds a head of another kind ({other[0]}); only reward models with a "
            "linear head `score` can be read"
        )
    missing = set(found["missing_keys"])
    fresh = missing == {"score.weight"}
    if missing and not fresh:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{place.path!r} lacks {len(missing)} of a reward model's weights ({shown}); "
            "give a whole checkpoint"
        )
    return model, fresh


@torch.no_grad()
def _draw(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator, dtype=torch.float32)
    head.weight.copy_(drawn / (head.in_features + 1) ** 0.5)


def _adapter(place: _Place, trainable: bool, base: str | None = None) -> Any:
    """Base model, and an adapter with a trained head of its own, as a PEFT model."""
    from peft import PeftConfig, PeftModel, load_peft_weights

    config = PeftConfig.from_pretrained(place.path)
    if config.task_type != "SEQ_CLS":
        raise ModelError(
            f"the adapter in {place.path!r} is not a reward model's (task_type "
            f"{config.task_type}, not SEQ_CLS); merge it first: penchant merge adapter=..."
        )
    base = base or config.base_model_name_or_path
    if not base:
        raise ModelError(f"the adapter in {place.path!r} does not name its base model")
    if not any(re.search(r"\bscore\b", name) for name in load_peft_weights(place.path, "cpu")):
        raise ModelError(
            f"the adapter in {place.path!r} was saved without its head; it has to be trained with "
            "modules_to_save=['score']"
        )
    hub = place.hub | {"revision": None}  # names the adapter's, not the base's
    # A head that is drawn here is replaced by the adapter's.
    model = _whole(replace(place, path=base, hub=hub), 0)
    file = Path(place.path) / ADAPTER_SETTINGS
    if file.is_file():
        _apply(json.loads(file.read_text()), model)
    return PeftModel.from_pretrained(model, place.path, is_trainable=trainable)


def _apply(found: dict[str, Any], model: Any) -> None:
    """Settings, padding and a grown vocabulary, as they were when the adapter was saved."""
    from penchant.models.padding import put_padding, resize

    pad, rows = found.pop("pad_token_id"), found.pop("vocab_size")
    if rows > model.get_input_embeddings().weight.shape[0]:
        resize(model, rows)
    if pad is not None:
        put_padding(model, pad)
    setattr(model.config, KEY, found)
    settings_of(model.config)
