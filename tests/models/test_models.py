"""Models: new, adapted, merged, saved and loaded again; dropout on and off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.errors import ModelError
from penchant.models import load
from penchant.models.adapters import add_lora, base_of, merge
from penchant.models.new import new_model, ready_tokenizer
from penchant.models.save import save_model
from tests.shared import shared_folder
from tests.tiny import tiny_model, tiny_tokenizer

ROW = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_loads_in_plain_transformers(saved: Path) -> None:
    again = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    torch.testing.assert_close(again(ROW).logits, tiny_model()(ROW).logits)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer.encode("Grüße ✓") == tiny_tokenizer().encode("Grüße ✓")


def test_saving_in_another_dtype(saved: Path, tmp_path: Path) -> None:
    model = load.load_causal_lm(str(saved))
    save_model(model, tiny_tokenizer(), tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert load.compute_dtype(str(tmp_path / "half"), "auto") == torch.bfloat16
    assert load.compute_dtype(str(tmp_path / "half"), "float32") == torch.float32


def test_dropout_is_off_unless_asked_for_and_the_config_keeps_its_own(tmp_path: Path) -> None:
    model = tiny_model("gpt2", attn_pdrop=0.4, resid_pdrop=0.3, embd_pdrop=0.2)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    silent = load.load_causal_lm(str(tmp_path / "model")).train()
    torch.testing.assert_close(silent(ROW).logits, silent(ROW).logits)
    noisy = load.load_causal_lm(str(tmp_path / "model"), dropout=True).train()
    assert not torch.equal(noisy(ROW).logits, noisy(ROW).logits)
    save_model(silent, tiny_tokenizer(), tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["attn_pdrop"], config["resid_pdrop"], config["embd_pdrop"]) == (0.4, 0.3, 0.2)
    assert silent.config.attn_pdrop == 0.0


def test_a_fresh_adapter_changes_nothing_and_its_dropout_works(saved: Path) -> None:
    base = load.load_causal_lm(str(saved))
    before = base(ROW).logits
    model = add_lora(base, r=4, alpha=8, dropout=0.5)
    torch.testing.assert_close(model.eval()(ROW).logits, before)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable and all(p.dtype == torch.float32 for p in trainable)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.train()
    assert not torch.equal(model(ROW).logits, model(ROW).logits)


def test_merging_gives_the_adapters_model(saved: Path, tmp_path: Path) -> None:
    model = add_lora(load.load_causal_lm(str(saved)), r=4, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    save_model(model, tiny_tokenizer(), tmp_path / "adapter")
    assert load.is_adapter(str(tmp_path / "adapter"))
    assert base_of(str(tmp_path / "adapter")) == str(saved)
    merged = merge(str(tmp_path / "adapter"), base=str(saved))
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(merged(ROW).logits, model.eval()(ROW).logits, rtol=1e-4, atol=1e-5)
    continued = load.load_causal_lm(str(tmp_path / "adapter"))
    torch.testing.assert_close(continued.eval()(ROW).logits, model(ROW).logits)
    assert any(p.requires_grad for p in continued.parameters())
    frozen = load.load_causal_lm(str(tmp_path / "adapter"), trainable=False)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_unknown_targets_are_refused_with_the_names_there_are(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"targets=\['nope'\].*q_proj"):
        add_lora(load.load_causal_lm(str(saved)), r=4, alpha=8, dropout=0.0, targets=["nope"])


def test_all_linear_adapts_what_the_original_did() -> None:
    """Reference vectors of Intel's find_all_linear_names."""
    cases = json.loads((shared_folder() / "golden" / "intel_dpo.json").read_text())
    matched, left_out = 0, []
    for architecture, names in cases["find_all_linear_names"]["cases"].items():
        if architecture == "gpt2":
            left_out.append(architecture)  # its Conv1D layers are linear too; upstream found none
            continue
        sizes = {"ffn_dim": 64, "intermediate_size": None} if architecture == "opt" else {}
        if architecture == "gptj":
            sizes = {"intermediate_size": None, "rotary_dim": 8}
        model = add_lora(tiny_model(architecture, **sizes), r=2, alpha=2, dropout=0.0)
        adapted = {
            n.split(".lora_A")[0].rsplit(".", 1)[-1]
            for n, _ in model.named_modules()
            if n.endswith("lora_A")
        }
        assert adapted == set(names), architecture
        matched += 1
    assert (matched, len(left_out)) == (6, 1)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused() -> None:
    config = tiny_model().config
    load.check_fit(config, tiny_tokenizer(), "model")
    grown = tiny_tokenizer()
    grown.add_tokens(["<more>"])
    with pytest.raises(ModelError, match=r"259.*259 embeddings"):
        load.check_fit(config, grown, "model")


def test_nothing_to_load_is_one_line(tmp_path: Path) -> None:
    for call in (load.load_causal_lm, load.load_tokenizer, load.load_config, base_of):
        with pytest.raises(ModelError) as caught:
            call(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_quantisation_without_cuda_is_refused(saved: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ModelError, match="needs a CUDA device"):
        load.load_causal_lm(str(saved), quantization="4bit")


def test_new_models_differ_by_seed_and_refuse_unknown_keys() -> None:
    assert not torch.equal(tiny_model(seed=1)(ROW).logits, tiny_model(seed=2)(ROW).logits)
    torch.testing.assert_close(tiny_model(seed=1)(ROW).logits, tiny_model(seed=1)(ROW).logits)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    with pytest.raises(ModelError, match="no key n_wheels"):
        new_model(tiny_tokenizer(), "llama", sizes | {"n_wheels": 4}, seed=0)
    with pytest.raises(ModelError, match="not a model type"):
        new_model(tiny_tokenizer(), "lama", sizes, seed=0)


def test_a_tokenizer_gets_what_it_lacks_and_keeps_what_it_has() -> None:
    path = str(shared_folder() / "data" / "tokenizer_gpt2")
    tokenizer = ready_tokenizer(AutoTokenizer.from_pretrained(path), "<|im_start|><|im_end|>")
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>" and len(tokenizer) == 50257 + 3
    assert len(tokenizer.encode("<|im_start|>")) == 1
    again = ready_tokenizer(tokenizer, None)
    assert len(again) == 50257 + 3
