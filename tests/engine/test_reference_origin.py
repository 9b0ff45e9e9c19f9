"""By what a model's stored values are found: whatever could change one gives another name."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant import engine
from penchant.engine.reference import software
from penchant.engine.reference.origin import Origin, name_of, settings_of
from penchant.models.adapters import add_lora
from penchant.models.load import load_causal_lm
from penchant.models.save import save_model
from tests.commands.world import one_bit
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and an adapter on it."""
    folder = tmp_path_factory.mktemp("made")
    save_model(tiny_model(attention_dropout=0.2), tiny_tokenizer(), folder / "model")
    adapted = lora(load_causal_lm(str(folder / "model")))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; its adapter's base is the copy's model."""
    shutil.copytree(made, tmp_path / "world")
    config = tmp_path / "world" / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(made), str(tmp_path / "world")))
    return tmp_path / "world"


def lora(model: Any, seed: int = 0) -> Any:
    """A fresh adapter whose every weight is drawn."""
    adapted = add_lora(model, r=2, alpha=4, dropout=0.1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapted


def name(
    world: Path,
    path: str = "model",
    *,
    load: Callable[[str], Any] = load_causal_lm,
    change: Callable[[Any], Any] = lambda model: model,
    layout: Any = "auto",
    dtype: torch.dtype = torch.float32,
    adapter_off: bool = False,
) -> str:
    """Of the values of a model that is loaded, changed and prepared."""
    read_from = Origin.of(str(world / path))
    prepared = engine.prepare(change(load(str(world / path))), layout, dtype=dtype)
    settings = settings_of(prepared, dtype, adapter_off=adapter_off)
    return name_of(json.loads(json.dumps(read_from.key(settings, prepared, world / "digests"))))


def in_bfloat16(path: str) -> Any:
    return load_causal_lm(path, dtype=torch.bfloat16)


def nudge(model: Any) -> Any:
    """A change in memory, as small as training makes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-6)
    return model


def set_config(world: Path, **values: Any) -> None:
    path = world / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FILES: dict[str, Callable[[Path], None]] = {
    "one weight by its last bit": one_bit,
    "a setting of the config": lambda world: set_config(world, rms_norm_eps=1e-5),
    "the positions": lambda world: set_config(
        world, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}
    ),
    "a window": lambda world: set_config(world, sliding_window=4),
    "other weights beside": lambda world: shutil.copy(
        world / "adapter" / "adapter_model.safetensors", world / "model" / "more.safetensors"
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_changed_files_are_another_name(world: Path, what: str) -> None:
    before = name(world)
    FILES[what](world)
    assert name(world) != before


COMPUTED: dict[str, dict[str, Any]] = {
    "the layout": {"layout": "plain"},
    "the dtype of the weights": {"load": in_bfloat16, "dtype": torch.bfloat16},
    "autocast": {"dtype": torch.bfloat16},
    "a change in memory": {"change": nudge},
    "an adapter that is on": {"change": lora},
    "other attention": {
        "change": lambda model: model.set_attn_implementation("eager") or model,
        "layout": "plain",
    },
}


def test_every_way_of_computing_is_another_name(world: Path) -> None:
    untouched = name(world)
    names = [untouched, *(name(world, **keywords) for keywords in COMPUTED.values())]
    names.append(name(world, "adapter"))
    names.append(name(world, change=lambda model: lora(model, seed=1)))
    torch.set_float32_matmul_precision("medium")
    try:
        names.append(name(world, layout="plain"))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(set(names)) == len(names) == 10
    assert name(world) == untouched, "full precision has one name, asked for or not"


def test_tensors_of_any_size_are_sampled_to_their_last_number(world: Path) -> None:
    """Beyond 2 ** 24 numbers float32 cannot name their places."""

    def with_buffer(last: int) -> Any:
        def change(model: Any) -> Any:
            values = torch.zeros(2**24 + 3, dtype=torch.uint8)
            values[-1] = last
            model.register_buffer("large", values, persistent=False)
            return model

        return change

    assert name(world, change=with_buffer(0)) != name(world, change=with_buffer(1))


def test_the_code_that_computes_is_in_the_name(world: Path, tmp_path: Path) -> None:
    untouched = name(world)
    before = software.engine_version()
    root = Path(engine.__file__).parents[1]
    named = [root / place for place in software._OUR_CODE]
    assert root / "types.py" in named and all(place.exists() for place in named)
    shutil.copytree(root, tmp_path / "penchant", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "penchant" / "types.py").open("a") as file:
        file.write("# per_tree gives rows in another order\n")
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path / "penchant" / "engine" / "reference" / "software.py"
        patch.setattr(software, "__file__", str(place))
        software.engine_version.cache_clear()
        assert software.engine_version() != before and name(world) != untouched
    software.engine_version.cache_clear()
    assert name(world) == untouched


def own_class(folder: Path, module: str, version: str) -> Any:
    """A model's class in a file of its own; the same name and settings, whatever the version."""
    folder.mkdir(exist_ok=True)
    code = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    "
    (folder / f"{module}.py").write_text(f"{code}version = {version!r}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module(module).Own


def test_the_code_of_every_class_of_a_model_is_in_the_name(world: Path, tmp_path: Path) -> None:
    """A library's too: one that is edited in place keeps its version."""
    kind = own_class(tmp_path / "code", "own_code", "one")

    def whole(model: Any) -> Any:
        model.__class__ = kind
        return model

    def part(model: Any) -> Any:
        model.lm_head.__class__ = type("Head", (torch.nn.Linear,), {"__module__": "own_code"})
        return model

    names = [name(world, change=change) for change in (lambda model: model, whole, part)]
    own_class(tmp_path / "code", "own_code", "two")
    names += [name(world, change=change) for change in (whole, part)]
    own_class(tmp_path / "code", "own_code", "one")
    (tmp_path / "code" / "beside.py").write_text("# that it imports from\n")
    names += [name(world, change=change) for change in (whole, part)]
    assert len(set(names)) == 7
    files = software.code_files(tiny_model())
    assert {"modeling_llama.py", "modeling_utils.py", "activations.py"} <= {f.name for f in files}
    assert not [file for file in files if "torch" in file.parts]


def test_a_class_that_is_in_no_file_has_no_name(world: Path) -> None:
    def interactive(model: Any) -> Any:
        model.__class__ = type("Own", (type(model),), {"__module__": "nowhere"})
        return model

    with pytest.raises(OSError, match="'nowhere' is in no file"):
        name(world, change=interactive)


def pretend_installed(folder: Path, package: str, version: str) -> None:
    """What an installation leaves for others to tell its version by; ahead of the real one."""
    place = folder / f"{package}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def test_the_way_of_quantisation_and_its_software_are_in_the_name(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantised(how: str) -> Callable[[Any], Any]:
        def change(model: Any) -> Any:
            model.is_quantized = True
            model.config.quantization_config = {"quant_method": "bitsandbytes", how: True}
            return model

        return change

    def names() -> list[str]:
        ways = [lambda model: model, quantised("load_in_4bit"), quantised("load_in_8bit")]
        return [name(world, change=change, layout="plain") for change in ways]

    before = names()
    pretend_installed(tmp_path / "installed", "bitsandbytes", "99.1")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    after = names()
    assert before[0] == after[0], "it computes nothing in a model that is not quantised"
    assert len({*before, *after}) == 5


def test_compiled_layers_are_another_name(world: Path) -> None:
    read_from = Origin.of(str(world / "model"))
    prepared = engine.prepare(load_causal_lm(str(world / "model")), "packed")
    before = settings_of(prepared, torch.float32)
    for layer in prepared.model.model.layers:
        layer.compile(dynamic=True)  # compiled at its first use, of which there is none here
    after = settings_of(prepared, torch.float32)
    keys = (read_from.key(one, prepared, world / "digests") for one in (before, after))
    assert len({*map(name_of, keys)}) == 2


def shortcut(world: Path, path: str = "model", **loaded: Any) -> str | None:
    given = {"dtype": "float32", "quantization": None, "code": False} | loaded
    return Origin.of(str(world / path)).shortcut(given, world / "digests")


def test_a_shortcut_stands_for_files_settings_and_software(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [shortcut(world), shortcut(world, "adapter")]
    found += [shortcut(world, quantization=how) for how in ("4bit", "8bit")]
    found += [shortcut(world, dtype="bfloat16"), shortcut(world, code=True)]
    assert shortcut(world) == found[0]
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        pretend_installed(tmp_path / package, package, "99.1")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / package)
            found.append(shortcut(world))
    torch.set_float32_matmul_precision("medium")
    try:
        found.append(shortcut(world))
    finally:
        torch.set_float32_matmul_precision("highest")
    set_config(world, rms_norm_eps=1e-5)
    found.append(shortcut(world))
    assert None not in found and len(set(found)) == len(found) == 12


def test_there_is_no_shortcut_where_the_code_is_another_repository_s(world: Path) -> None:
    """It is fetched anew when it changes there, and no file of the model's folder changes."""
    set_config(world, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert shortcut(world) and shortcut(world, "adapter")
    set_config(world, auto_map={"AutoModelForCausalLM": "other/repo--modeling_own.Own"})
    assert shortcut(world) is shortcut(world, "adapter") is None


SAME: dict[str, Callable[[Path], str]] = {
    "a fresh adapter that is off": lambda world: name(world, change=lora, adapter_off=True),
    "another fresh adapter": lambda world: name(
        world, change=lambda model: lora(model, seed=3), adapter_off=True
    ),
    "dropout, which is off in the reference": lambda world: name(
        world, load=lambda path: load_causal_lm(path, dropout=True)
    ),
    "gradient checkpointing": lambda world: name(
        world, change=lambda model: model.gradient_checkpointing_enable() or model
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_value_keeps_the_name(world: Path, what: str) -> None:
    assert SAME[what](world) == name(world)


def test_a_copy_elsewhere_has_the_same_name(world: Path, tmp_path: Path) -> None:
    before = [name(world), name(world, "adapter")]
    shutil.copytree(world / "model", tmp_path / "elsewhere" / "model")
    for file in (tmp_path / "elsewhere" / "model").iterdir():
        os.utime(file)
    (tmp_path / "elsewhere" / "model" / "README.md").write_text("# A copy\n")
    assert name(tmp_path / "elsewhere") == before[0]
    assert len({*before}) == 2


def test_an_adapter_counts_with_its_settings_and_its_base(world: Path) -> None:
    names = [name(world, "adapter")]
    config = world / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    names.append(name(world, "adapter"))
    one_bit(world)
    names.append(name(world, "adapter"))
    assert len(set(names)) == 3


def test_files_that_change_while_they_are_read_have_no_name(world: Path) -> None:
    """The weights in memory would be those from before, and the digest that of the new ones."""

    def slow(path: str) -> Any:
        model = load_causal_lm(path)
        one_bit(world)
        return model

    with pytest.raises(OSError, match="changed while it was read"):
        name(world, load=slow)


def test_a_model_without_files_has_no_name(world: Path) -> None:
    def drop(model: Any) -> Any:
        (world / "model" / "model.safetensors").unlink()
        return model

    with pytest.raises(OSError, match="no files of weights"):
        name(world, change=drop)
