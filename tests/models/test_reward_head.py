"""Reward models: made from language models, saved, read back, in plain transformers too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, core_model_loading

from penchant import engine
from penchant.errors import ModelError
from penchant.models import load
from penchant.models.adapters import add_lora, merge
from penchant.models.config import ModelConfig
from penchant.models.padding import set_padding
from penchant.models.reward_head import load_reward_model, read_reward_model
from penchant.models.reward_settings import RewardSettings, put_settings, settings_of
from penchant.models.save import save_model
from penchant.types import TokenTree
from tests.tiny import all_naive_logps, random_trees, tiny_tokenizer, tree_of, vivid_model

FLOAT = torch.float32
TEXTS = ["Is it? Yes.", "Is it? No, not at all.", "Is it? ", "Grüße ✓"]


def saved(folder: Path, name: str = "llama", tokenizer: Any = None, **sizes: Any) -> str:
    """A language model on disk."""
    save_model(vivid_model(name, **sizes), tokenizer or tiny_tokenizer(), folder)
    return str(folder)


def made(path: str, seed: int = 0, **options: Any) -> Any:
    return load_reward_model(ModelConfig(path=path), FLOAT, seed=seed, **options).eval()


@torch.no_grad()
def scores(model: Any, trees: Sequence[TokenTree], layout: Any = "auto") -> Tensor:
    return engine.prepare(model, layout).scores(trees)


def trees_of(tokenizer: Any, texts: Sequence[str] = TEXTS) -> list[TokenTree]:
    """Texts as trees whose only response is what follows their first token; EOS at the end."""
    found = []
    for text in texts:
        ids = (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
        found.append(TokenTree(row_id=text, prompt_ids=ids[:1], response_ids=(ids[1:],),
                               response_masks=((True,) * len(ids[1:]),)))  # fmt: skip
    return found


@torch.no_grad()
def in_plain(
    model: Any, tokenizer: Any, texts: Sequence[str] = TEXTS, side: str = "right"
) -> Tensor:
    """What a user of transformers gets for a padded batch of the same texts."""
    tokenizer.padding_side = side
    rows = [text + tokenizer.eos_token for text in TEXTS]
    batch = tokenizer(rows, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert (batch["attention_mask"] == 0).any()
    found: Tensor = model(**batch).logits[:, 0]
    return found


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_head_is_drawn_from_its_seed_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "lm")
    torch.manual_seed(1)
    first = made(path, seed=5)
    torch.manual_seed(2)
    assert torch.equal(made(path, seed=5).score.weight, first.score.weight)
    assert not torch.equal(made(path, seed=6).score.weight, first.score.weight)
    assert first.score.bias is None and first.score.weight.shape == (1, 32)
    spread = torch.cat([made(path, seed=seed).score.weight for seed in range(30)]).std()
    assert 0.9 < spread * 33**0.5 < 1.1
    for name, value in vivid_model("llama").model.state_dict().items():
        assert torch.equal(first.model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "qwen3_moe", "gemma3_text"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_plain_transformers_gives_the_same_scores(tmp_path: Path, name: str, side: str) -> None:
    if (name, side) == ("gpt2", "left"):
        pytest.skip("its positions count padding too, so plain transformers differs from itself")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = made(saved(tmp_path / "lm", name, tokenizer))
    set_padding(model, tokenizer)
    save_model(model, tokenizer, tmp_path / "rm")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    its_own = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert type(again).__name__.endswith("ForSequenceClassification")
    assert again.config.pad_token_id == its_own.pad_token_id != its_own.eos_token_id
    expected = scores(model, trees_of(tokenizer))
    assert expected.std() > 1e-3
    close(in_plain(again, its_own, side=side), expected)
    close(scores(read_reward_model(str(tmp_path / "rm")), trees_of(its_own)), expected)


def test_where_padding_is_eos_plain_transformers_reads_another_token(tmp_path: Path) -> None:
    """Why the padding token has to be another one."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = made(saved(tmp_path / "lm", tokenizer=tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    difference = in_plain(model, tokenizer) - scores(model, trees_of(tokenizer))
    assert difference.abs().min() > 1e-4


def test_an_existing_reward_model_goes_on_with_its_head(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = made(saved(tmp_path / "lm"), seed=3, pooling="average")
    put_settings(model, RewardSettings(pooling="average", max_length=77, max_prompt_length=33))
    save_model(model, tokenizer, tmp_path / "rm")
    again = made(str(tmp_path / "rm"), seed=9)
    assert torch.equal(again.score.weight, model.score.weight)
    expected = RewardSettings(pooling="average", max_length=77, max_prompt_length=33)
    assert settings_of(again.config) == expected
    other = made(str(tmp_path / "rm"), seed=9, pooling="max")
    assert settings_of(other.config) == RewardSettings(
        pooling="max", max_length=77, max_prompt_length=33
    )


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_other_poolings_come_back_with_the_checkpoint(tmp_path: Path, pooling: Any) -> None:
    trees = random_trees(4)
    model = made(saved(tmp_path / "lm"), pooling=pooling)
    save_model(model, tiny_tokenizer(), tmp_path / "rm")
    again = read_reward_model(str(tmp_path / "rm"))
    close(scores(again, trees), scores(model, trees))
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert "gives other scores" in config["penchant_reward"]["note"]
    last = made(str(tmp_path / "rm"), pooling="last").eval()
    assert (scores(last, trees) - scores(model, trees)).abs().max() > 1e-2


def test_saving_in_another_dtype(tmp_path: Path) -> None:
    model = made(saved(tmp_path / "lm"))
    save_model(model, tiny_tokenizer(), tmp_path / "half", dtype=torch.bfloat16)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.bfloat16 and model.dtype == FLOAT
    assert torch.equal(again.score.weight, model.score.weight.bfloat16())


@pytest.mark.parametrize("tied", [False, True])
def test_the_language_head_comes_along_and_is_not_saved(tmp_path: Path, tied: bool) -> None:
    path = saved(tmp_path / "lm", "llama-tied" if tied else "llama")
    model = made(path, with_language_head=True)
    trees = random_trees(3)
    logps = engine.prepare(model).rewards(trees, with_logps=True).logps
    assert logps is not None
    expected = all_naive_logps(load.load_causal_lm(path).eval(), trees)
    torch.testing.assert_close(logps.values_T.double(), expected, rtol=1e-5, atol=1e-5)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.weight.requires_grad == tied
    save_model(model, tiny_tokenizer(), tmp_path / "rm")
    names = load_file(tmp_path / "rm" / "model.safetensors")
    assert "score.weight" in names and not [name for name in names if "lm_head" in name]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.equal(again.score.weight, model.score.weight)
    head = model.lm_head.weight.detach().clone()
    fresh = made(path, seed=8, with_language_head=True)
    fresh.load_state_dict(again.state_dict())  # as a run that is resumed does it, strictly
    assert torch.equal(fresh.score.weight, model.score.weight)
    assert torch.equal(fresh.lm_head.weight, head)
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({"score.weight": model.score.weight})
    with pytest.raises(ModelError, match="is a reward model, which holds no language-model head"):
        made(str(tmp_path / "rm"), with_language_head=True)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt_neox", "opt", "qwen3_moe"])
def test_the_base_is_read_once_also_for_the_language_head(
    tmp_path: Path, monkeypatch: Any, name: str
) -> None:
    path = saved(tmp_path / "lm", name)
    read: list[int] = []
    materialize = core_model_loading.spawn_materialize

    def counted(pool: Any, tensor: Any, *rest: Any, **given: Any) -> Any:
        read.append(math.prod(tensor.get_shape()))
        return materialize(pool, tensor, *rest, **given)

    monkeypatch.setattr(core_model_loading, "spawn_materialize", counted)
    made(path)
    alone = sum(read)
    read.clear()
    model = made(path, with_language_head=True)
    causal = vivid_model(name)
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    own_head = 0 if head.weight is embedding.weight else head.weight.numel()
    assert alone > 2 * embedding.weight.numel()
    assert sum(read) == alone + embedding.weight.numel() + own_head
    assert torch.equal(model.lm_head.weight, head.weight)
    assert model.lm_head.weight.requires_grad == (own_head == 0)


@pytest.mark.parametrize("with_language_head", [False, True])
def test_an_adapter_trains_and_saves_the_head(tmp_path: Path, with_language_head: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    path = saved(tmp_path / "lm", tokenizer=tokenizer)
    base = made(path, seed=4, pooling="last", with_language_head=with_language_head)
    padding = set_padding(base, tokenizer)
    before = scores(base, trees_of(tokenizer))
    model = add_lora(base, r=2, alpha=4, dropout=0.0).eval()
    close(scores(model, trees_of(tokenizer)), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name in trained if "score" in name] and not [n for n in trained if "lm_" in n]
    _shake(model)
    expected = scores(model, trees_of(tokenizer))
    assert (expected - before).abs().min() > 1e-4
    save_model(model, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    again = read_reward_model(str(tmp_path / "adapter"))
    close(scores(again, trees_of(tokenizer)), expected)
    assert again.config.pad_token_id == padding.id
    assert not any(p.requires_grad for p in again.parameters())
    in_peft = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=1, pad_token_id=padding.id
    )
    close(in_plain(in_peft.eval(), tokenizer), expected)
    continued = made(str(tmp_path / "adapter"))
    assert {name for name, p in continued.named_parameters() if p.requires_grad} == trained
    close(scores(continued, trees_of(tokenizer)), expected)
    merged = merge(str(tmp_path / "adapter"), base=path)
    save_model(merged, tokenizer, tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    close(in_plain(plain.eval(), tokenizer), expected)


def test_the_documented_call_loads_an_adapter_in_plain_peft(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    base = made(saved(tmp_path / "lm", tokenizer=tokenizer), seed=4)
    set_padding(base, tokenizer)
    model = add_lora(base, r=2, alpha=4, dropout=0.0).eval()
    _shake(model)
    save_model(model, tokenizer, tmp_path / "adapter")
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("runs/rm", str(tmp_path / "adapter")), found)
    in_peft, its_own = found["model"].eval(), found["tokenizer"]
    close(in_plain(in_peft, its_own), scores(model, trees_of(tokenizer)))
    saved_config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not {"num_labels", "pad_token_id"} & set(saved_config)


def test_an_adapter_on_a_grown_vocabulary(tmp_path: Path) -> None:
    """The base model has no row left for a padding token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<|pad|>" + tokenizer.chat_template  # so that it is not free
    base = made(saved(tmp_path / "lm", tokenizer=tokenizer), pooling="max")
    padding = set_padding(base, tokenizer)
    assert padding.token == "<|pad_1|>" and "260 rows now, 1 more" in padding.how
    model = add_lora(base, r=2, alpha=4, dropout=0.0).eval()
    _shake(model)
    save_model(model, tokenizer, tmp_path / "adapter")
    again = read_reward_model(str(tmp_path / "adapter"))
    assert again.get_input_embeddings().weight.shape[0] == 260
    assert settings_of(again.config).pooling == "max"
    close(scores(again, trees_of(tokenizer)), scores(model, trees_of(tokenizer)))


def _shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["cohere2", "granite", "afmoe"])
def test_architectures_without_such_a_class_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}.*AutoModelForSequenceClassification, so no"):
        made(saved(tmp_path / "lm", name))


def test_what_is_no_reward_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "lm")
    with pytest.raises(ModelError, match="is no reward model: it has no head `score`"):
        read_reward_model(path)
    with pytest.raises(ModelError, match="pooling is 'mean'; allowed: last, average, max"):
        made(path, pooling="mean")
    two = vivid_model("llama").config
    two.num_labels = 2
    model = AutoModelForSequenceClassification.from_config(two)
    save_model(model, tiny_tokenizer(), tmp_path / "two")
    for read in (made, read_reward_model):
        with pytest.raises(ModelError, match="is a classifier of 2 labels"):
            read(str(tmp_path / "two"))
    policy = add_lora(load.load_causal_lm(path), r=2, alpha=2, dropout=0.0)
    save_model(policy, tiny_tokenizer(), tmp_path / "policy")
    with pytest.raises(ModelError, match=r"not a reward model's .*merge it first"):
        made(str(tmp_path / "policy"))
    with pytest.raises(ModelError, match="no folder"):
        read_reward_model(str(tmp_path / "absent" / "er"))


def test_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "lm"))
    weights = load_file(path / "model.safetensors")
    save_file(
        weights | {"v_head.summary.weight": torch.zeros(1, 32)},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"head of another kind \(v_head.summary.weight\)"):
        made(str(path))
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 of a reward model's weights.*model.norm"):
        made(str(path))


def test_an_adapter_without_its_head_is_refused(tmp_path: Path) -> None:
    model = add_lora(made(saved(tmp_path / "lm")), r=2, alpha=4, dropout=0.0)
    save_model(model, tiny_tokenizer(), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "score" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="was saved without its head"):
        read_reward_model(str(tmp_path / "adapter"))


def test_encoders_score_but_are_not_trained(tmp_path: Path) -> None:
    from tests.reward.encoders import save_encoder

    save_encoder("bert", tmp_path)
    assert read_reward_model(str(tmp_path)).config.num_labels == 1
    with pytest.raises(ModelError, match="can score, not be trained here"):
        made(str(tmp_path))


def test_settings_of_a_later_version_are_not_passed_over(tmp_path: Path) -> None:
    model = made(saved(tmp_path / "lm"))
    save_model(model, tiny_tokenizer(), tmp_path / "rm")
    file = tmp_path / "rm" / "config.json"
    config = json.loads(file.read_text())
    config["penchant_reward"]["temperature"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="holds temperature, which this version does not know"):
        read_reward_model(str(tmp_path / "rm"))


def test_the_padding_ids_row_is_trained_where_it_was_eos(tmp_path: Path) -> None:
    """torch leaves the row of `padding_idx` without a gradient."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = vivid_model("llama")
    model.config.pad_token_id = tokenizer.eos_token_id
    save_model(model, tokenizer, tmp_path / "lm")
    reward = made(str(tmp_path / "lm"))
    set_padding(reward, tokenizer)
    engine.prepare(reward).scores(trees_of(tokenizer)).sum().backward()
    grad_VH = reward.get_input_embeddings().weight.grad
    assert grad_VH[tokenizer.eos_token_id].abs().max() > 0
    assert grad_VH[tokenizer.pad_token_id].abs().max() == 0


def test_scores_do_not_depend_on_which_id_pads(tmp_path: Path) -> None:
    model = made(saved(tmp_path / "lm"))
    trees = [*random_trees(3), tree_of(4, 3, 9)]
    expected = {layout: scores(model, trees, layout) for layout in ("plain", "packed")}
    for pad in (0, trees[0].response_ids[0][-1], 200):
        model.config.pad_token_id = pad
        for layout, values_R in expected.items():
            assert torch.equal(scores(model, trees, layout), values_R)
