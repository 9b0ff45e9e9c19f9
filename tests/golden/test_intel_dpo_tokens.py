"""golden/intel_dpo.json: token ids, padded rows and the layers that get an adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from penchant import data
from penchant.engine.plain import lay_out
from penchant.models.adapters import add_lora
from penchant.types import Comparison, TokenTree
from tests.golden.vectors import Case, check_all, read


def _tokenizer() -> PreTrainedTokenizerFast:
    """That of the file: the word wN is id 10 + N, the end of a text is id 1."""
    vocabulary = {"[PAD]": 0, "</s>": 1, "[UNK]": 2} | {f"w{i}": 10 + i for i in range(1, 12)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>", pad_token="[PAD]"
    )


def _tree(prompt: str, chosen: str, rejected: str, **settings: Any) -> TokenTree:
    comparison = Comparison(
        row_id="case:1", prompt=prompt.strip(), responses=(chosen, rejected), pairs=((0, 1),)
    )
    return data.tree(comparison, _tokenizer(), truncate_prompt="keep_start", **settings)


def _features(case: Case) -> None:
    """Ids and scored tokens of both sides; a tree has no padding, so upstream's is taken off."""
    tree = _tree(
        case["system"] + case["question"],
        case["chosen"],
        case["rejected"],
        max_length=case["max_length"],
        max_prompt_length=case["max_prompt_length"],
    )
    expected = case["output"]
    assert list(tree.prompt_ids) == expected["prompt_input_ids"]
    for side, ids, mask in zip(
        ("chosen", "rejected"), tree.response_ids, tree.response_masks, strict=True
    ):
        length = sum(expected[f"{side}_attention_mask"])
        assert [*tree.prompt_ids, *ids] == expected[f"{side}_input_ids"][:length]
        scored = [False] * len(tree.prompt_ids) + list(mask)
        assert scored == [label != -100 for label in expected[f"{side}_labels"][:length]]


FEATURES = dict.fromkeys(
    # A tree of the empty answer is laid out alike; a training run sets such a row aside.
    ("plain", "pad_max", "empty_rejected", "surrounding_spaces_stripped"),
    _features,
)
FEATURES_LEFT_OUT = {
    "prompt_cut_keeps_the_beginning": "upstream cuts a prompt though the whole fits; ours does not",
    "prompt_longer_than_max_length_negative_slice": "upstream fault: rows above max_length",
}


def test_features() -> None:
    cases = read("intel_dpo.json")["prepare_features"]["cases"]
    assert check_all(cases, FEATURES, FEATURES_LEFT_OUT) == (4, 2)


def test_padded_rows() -> None:
    """Ids, scored places and attention of three batches; the ids of padding are nobody's."""
    cases = read("intel_dpo.json")["collate"]["cases"]
    # Left out: a batch with a row whose two answers are the same, which ours sets aside.
    usable = [c for c in cases if all(row["chosen"] != row["rejected"] for row in c["rows"])]
    assert (len(usable), len(cases) - len(usable)) == (2, 1)
    for case in usable:
        trees = [_tree(row["prompt"], row["chosen"], row["rejected"]) for row in case["rows"]]
        rows = lay_out(trees, torch.device("cpu"))
        # Upstream stacks chosen rows, then rejected ones; here the two of a tree lie together.
        order = [*range(0, 2 * len(trees), 2), *range(1, 2 * len(trees), 2)]
        attention_RL = rows.attention_RL[order]
        assert attention_RL.tolist() == case["attention_mask"]
        ids_RL = torch.tensor(case["input_ids"])
        assert torch.equal(rows.ids_RL[order] * attention_RL, ids_RL * attention_RL)
        assert torch.equal(rows.scored_RL[order], torch.tensor(case["labels"]) != -100)


LLAMA = {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
TINY: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, **LLAMA},
    "mistral": {"hidden_size": 16, "num_hidden_layers": 1, **LLAMA},
    "gpt_neox": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 1},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
}
LAYERS_LEFT_OUT = {"gpt2": "upstream finds no linear layer in it; ours adapts its Conv1D layers"}


@pytest.mark.parametrize("architecture", TINY)
def test_all_linear_layers(architecture: str) -> None:
    expected = read("intel_dpo.json")["find_all_linear_names"]["cases"]
    assert set(expected) == set(TINY) | set(LAYERS_LEFT_OUT)
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": 32}
    config = AutoConfig.for_model(architecture, **TINY[architecture], **ids)
    adapted = add_lora(AutoModelForCausalLM.from_config(config), r=2, alpha=2, dropout=0.0)
    suffix = ".lora_A"
    found = {
        name.removesuffix(suffix).rsplit(".", 1)[-1]
        for name, _ in adapted.named_modules()
        if name.endswith(suffix)
    }
    assert sorted(found) == expected[architecture]
