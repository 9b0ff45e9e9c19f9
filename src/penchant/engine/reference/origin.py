"""What a model is, as far as its log-probabilities go: weights, settings, numbers, code.

In the name of an entry is whatever makes another computation of it. What only changes the order in
which the same numbers are added up is not: micro-batches, threads, how many processes take part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from torch.distributed.tensor import DTensor

from penchant.engine import Engine
from penchant.engine.compiled import is_compiled
from penchant.engine.heads import causal_of, has_ordinary_head
from penchant.engine.reference import digests
from penchant.engine.reference.software import code_digest, code_files, device_kind, software
from penchant.engine.sharding import is_sharded
from penchant.models import load

_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json", "*.py", load.ADAPTER_FILE)
"""Files of a model's folder that its weights may come from, what names them, and its code."""
_IDLE_SETTINGS = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
"""Of a config: names and versions, and what is told by the weights in memory."""
_IDLE_OF_ADAPTERS = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"}
)
Stamped = tuple[tuple[Path, digests.Stamp], ...]
_SAMPLE = 256
"""Numbers of each tensor in memory that go into the key."""


@dataclass(frozen=True)
class Origin:
    """Where a model is read from, and what lay there before; build it with `of`."""

    path: str
    """As it was named: a folder, an adapter's too, or a hub id."""
    revision: str | None
    before: Stamped | None
    """Of a folder: its files before the model was read. In the hub's cache none ever changes."""

    @classmethod
    def of(cls, path: str, revision: str | None = None) -> Origin:
        """To be called before the model is read. Raises OSError where a file cannot be read."""
        before = _stamped(path, None) if Path(path).is_dir() else None
        return cls(path, revision, before)

    def key(self, settings: Mapping[str, Any], engine: Engine, folder: Path) -> dict[str, Any]:
        """Everything that could change a value that this engine gives.

        Args:
            settings: of this engine (`settings_of`).
            engine: of the model that was read from here, unchanged since.
            folder: where digests of files are kept.
        Raises:
            OSError: the files are not there, or changed while the model was read.
        """
        revision = self.revision or getattr(causal_of(engine.model).config, "_commit_hash", None)
        now = _stamped(self.path, revision)
        if not _has_weights(now):
            raise FileNotFoundError(f"no files of weights were found for {self.path!r}")
        found = digests.of_files([file for file, _ in now], folder)
        if (self.before or now) != now or _stamped(self.path, revision) != now:
            raise OSError(f"the files of {self.path!r} changed while it was read")
        files = [*zip((file.name for file, _ in now), found, strict=True)]
        return {**settings, "files": files}

    def shortcut(self, settings: Mapping[str, Any], folder: Path) -> str | None:
        """A digest that stands for a key without a model in memory, of files and settings alone.

        What a model becomes in memory follows from its files, from how it is loaded and from the
        code. None where its files are not here yet, or cannot be read, or where its code is another
        repository's. Code outside of its files is the caller's to compare (`code_files`).

        Args:
            settings: how the model would be loaded and what it would compute in.
        """
        try:
            files = _stamped(self.path, self.revision, ("config.json",))
            if not _has_weights(files) or not {*(self.before or ())} <= {*files}:
                return None
            if any(_borrows_code(file) for file, _ in files if file.name == "config.json"):
                return None
            found = digests.of_files([file for file, _ in files], folder)
        except (OSError, ValueError):
            return None
        known = {
            **settings,
            **software(quantised=True),
            "files": [*zip((f.name for f, _ in files), found)],
        }
        return _digest(_plain(known))


def name_of(key: Mapping[str, Any]) -> str:
    """The name of an entry: a digest of its key."""
    return _digest(_plain(key))


def describe(key: Mapping[str, Any]) -> dict[str, str]:
    """The few words of a key that people tell entries apart by."""
    numbers = key.get("numbers", {})
    return {
        "dtype": str(numbers.get("dtype", "")),
        "layout": str(numbers.get("layout", "")),
        "device": str(numbers.get("device", "")).partition(" ")[0],
        "adapter": "adapter" if key.get("adapter") else "",
    }


def settings_of(engine: Engine, dtype: torch.dtype, *, adapter_off: bool = False) -> dict[str, Any]:
    """Of a model in memory: all of a key but its files.

    Processes that share a model's weights must call it together.

    Args:
        dtype: what the model computes in.
        adapter_off: its adapter is fresh and switched off: the base is what computes.
    Raises:
        OSError: the code of the model cannot be read.
    """
    model, inner = engine.model, causal_of(engine.model)
    adapters = getattr(model, "peft_config", None)
    config = {
        name: value
        for name, value in inner.config.to_dict().items()
        if "dropout" not in name and not name.endswith("pdrop")
    }
    cast = "gathered" if is_sharded(model) and dtype != torch.float32 else "weights"
    return {
        "sample": _sample(model, adapter_off),
        "config": _digest(_plain(config, _IDLE_SETTINGS)),
        "adapter": _digest(_adapters(adapters)) if adapters and not adapter_off else None,
        "numbers": {
            "dtype": str(dtype).removeprefix("torch."),
            "cast": cast if engine.autocast_dtype is None else "autocast",
            "layout": engine.layout,
            "attention": getattr(inner.config, "_attn_implementation", None),
            "ordinary_head": has_ordinary_head(model),
            "device": device_kind(next(model.parameters()).device),
            **({"compiled": True} if is_compiled(model) else {}),
        },
        "code": code_digest(code_files(model, adapter_off=adapter_off)),
        **software(quantised=bool(getattr(inner, "is_quantized", False))),
    }


def _stamped(path: str, revision: str | None, more: Sequence[str] = ()) -> Stamped:
    return tuple((file, digests.stamp(file)) for file in _files(path, revision, more))


def _has_weights(files: Stamped) -> bool:
    return any(file.suffix not in (".json", ".py") for file, _ in files)


def _borrows_code(config: Path) -> bool:
    """Whether a model's class is another repository's: `auto_map` says "owner/name--file.Class"."""
    return "--" in json.dumps(json.loads(config.read_text("utf-8")).get("auto_map"))


def _files(path: str, revision: str | None, more: Sequence[str]) -> Iterator[Path]:
    folder = Path(path) if Path(path).is_dir() else _snapshot(path, revision)
    if folder is None:
        return
    yield from sorted({file for what in (*_FILES, *more) for file in folder.glob(what)})
    if load.is_adapter(str(folder)):
        base = json.loads((folder / load.ADAPTER_FILE).read_text())["base_model_name_or_path"]
        yield from _files(str(base), None, more)


def _snapshot(path: str, revision: str | None) -> Path | None:
    """The folder of a hub id's files, as they were loaded."""
    for name in ("config.json", load.ADAPTER_FILE):
        try:
            found = try_to_load_from_cache(path, name, revision=revision)
        except ValueError:  # no hub id
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _tensors(model: Any, adapter_off: bool) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by the names that they have without a fresh adapter."""
    prefix = "base_model.model." if adapter_off else ""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if adapter_off and ".lora_" in name:
            continue
        yield name.removeprefix(prefix).replace(".base_layer" if adapter_off else "\0", ""), tensor


def _sample(model: Any, adapter_off: bool) -> str:
    """Digest of some numbers of every tensor in memory: are they those of the files?

    Weights that were changed after they were read, or drawn anew, must not go by the files' name.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(_tensors(model, adapter_off), key=lambda one: one[0]):
        whole = tensor.detach()
        whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype} ".encode())
        if whole.numel():
            number, last = min(_SAMPLE, whole.numel()), whole.numel() - 1
            # In whole numbers: float32 counts to 16 million, a large embedding holds more.
            places = torch.arange(number) * last // max(1, number - 1)
            picked = whole.reshape(-1)[places.to(whole.device)].cpu().contiguous()
            digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapters(configs: Mapping[str, Any]) -> str:
    return _plain({name: one.to_dict() for name, one in configs.items()}, _IDLE_OF_ADAPTERS)


def _plain(value: Any, without: frozenset[str] = frozenset()) -> str:
    """Text that is equal for equal values, whatever the order in which they were put together."""

    def simple(one: Any) -> Any:
        if isinstance(one, Mapping):
            return {str(k): simple(v) for k, v in one.items() if k not in without}
        if isinstance(one, (set, frozenset)):
            return sorted(json.dumps(simple(part)) for part in one)
        if isinstance(one, (list, tuple)):
            return [simple(part) for part in one]
        if one is None or isinstance(one, (str, int, float, bool)):
            return one
        return str(one)

    return json.dumps(simple(value), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
