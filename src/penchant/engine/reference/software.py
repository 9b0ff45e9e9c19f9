"""The software that computes: a model's code, our own, and the libraries below them.

A model's code counts by its content: an installation that one edits, or a nightly one, changes
without changing its version.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from penchant.engine.heads import causal_of

_BELOW = frozenset({"torch", *sys.stdlib_module_names})
"""Packages whose code is known by a version alone."""
_LIBRARIES = ("torch", "transformers", "peft")
_QUANTISERS = (
    "auto-gptq", "autoawq", "bitsandbytes", "compressed-tensors", "gptqmodel", "hqq",
    "optimum-quanto", "torchao",
)  # fmt: skip
"""What may compute with quantised weights."""
_PRODUCTS = (torch.backends.mkldnn, torch.backends.cuda)
_OUR_CODE = ("engine", "models/load.py", "models/adapters.py", "types.py")
"""Files and folders, without folders in them."""


def software(*, quantised: bool) -> dict[str, Any]:
    """Settings and versions of what computes; the model's own code is not among them.

    Args:
        quantised: the libraries that compute with quantised weights count too.
    """
    names = (*_LIBRARIES, *(_QUANTISERS if quantised else ()))
    return {
        "products": _precision_of_products(),
        "versions": {name: version for name in names if (version := _version(name))},
        "engine": engine_version(),
    }


def code_files(model: Any, *, adapter_off: bool = False) -> list[Path]:
    """Files that the classes of a model and of its parts come from.

    Of a library the file itself; of code that came with a checkpoint all that lies beside it.

    Args:
        adapter_off: an adapter's classes do not compute.
    Raises:
        OSError: a class is in no file.
    """
    below = _BELOW | {"peft"} if adapter_off else _BELOW
    kinds = {kind for part in causal_of(model).modules() for kind in type(part).__mro__}
    modules = {kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] not in below}
    return sorted({file for name in modules for file in _files_of(name)})


def code_digest(files: Sequence[Path]) -> str:
    """By content, not by where the files lie. Raises OSError where one is not there."""
    found = sorted(hashlib.blake2b(file.read_bytes()).digest() for file in files)
    return hashlib.blake2b(b"".join(found), digest_size=16).hexdigest()


@cache
def engine_version() -> str:
    """Digest of the code that computes: another version of it makes its own values."""
    root = Path(__file__).parent.parent.parent
    digest = hashlib.blake2b(metadata.version("penchant").encode(), digest_size=16)
    for place in (root / name for name in _OUR_CODE):
        for path in [place] if place.is_file() else sorted(place.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def device_kind(device: torch.device) -> str:
    """Its kind, and what its kernels are chosen by."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def _files_of(name: str) -> Iterator[Path]:
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        raise OSError(f"the code of {name!r} is in no file")
    if name.startswith(("transformers.", "peft.")):
        yield Path(file)
    else:
        yield from Path(file).parent.glob("*.py")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _precision_of_products() -> list[str]:
    """What float32 matrix products are computed in, by torch's settings."""
    # "none" is what nobody has set: full precision, which "ieee" asks for by name.
    places: list[Any] = [torch.backends, *(getattr(one, "matmul", None) for one in _PRODUCTS)]
    found = [str(place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]
    found = ["ieee" if precision == "none" else precision for precision in found]
    return found or [torch.get_float32_matmul_precision()]
