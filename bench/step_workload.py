"""The batch and the model of a case, the same for both sides, and the flops that they need.

Lengths are drawn from a lognormal at evenly spaced quantiles, so that a few pairs have its mean and
its spread; token ids are random. For TRL a prompt is written as words that stand for its ids, so
that its own preprocessing runs, and what it makes of them is compared with ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from step_cases import SIZES, Case, Size

from penchant.types import TokenTree

PADDING, END = 0, 1
"""Ids of the two special tokens."""
PROMPT_SPREAD, RESPONSE_SPREAD = 0.8, 0.6
"""Standard deviations of the logarithm."""
SEED = 20_250_101

Lengths = list[tuple[int, list[int]]]
"""Per prompt: its tokens, and those of each response with its end-of-text token."""


def draw_lengths(case: Case) -> Lengths:
    """The case's batch by its distribution; a pure function of the case."""
    if case.fixed:
        return [(case.cap // 2, [case.cap // 2] * case.responses)] * case.prompts
    generator = random.Random(SEED)
    count = case.prompts * case.responses
    prompts = _quantiles(case.prompt_mean, PROMPT_SPREAD, case.prompts)
    responses = _quantiles(case.response_mean, RESPONSE_SPREAD, count)
    generator.shuffle(prompts)
    generator.shuffle(responses)
    taken = iter(responses)
    return [
        _capped(prompt, [next(taken) for _ in range(case.responses)], case) for prompt in prompts
    ]


def read_lengths(case: Case, file: Path, tokenizer_folder: Path) -> Lengths:
    """Real lengths: pairs of a data file as Penchant would train on them.

    Of all, sorted by their tokens, those at the middle of as many equal shares as are needed.

    Raises ValueError where the file has fewer comparisons of that many responses.
    """
    from penchant import data
    from penchant.data.render import chat_template
    from penchant.models.load import load_tokenizer
    from penchant.models.new import ready_tokenizer

    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer = ready_tokenizer(tokenizer, tokenizer.chat_template or chat_template("chatml"))
    trees, _ = data.build_trees(list(data.load(str(file))), tokenizer, max_length=case.cap)
    fitting = [tree for tree in trees if len(tree.response_ids) >= case.responses]
    if len(fitting) < case.prompts:
        raise ValueError(
            f"{file.name} has {len(fitting)} prompts with {case.responses} responses; "
            f"the case needs {case.prompts}; take another file or other --cases"
        )
    fitting.sort(key=lambda tree: tree.num_tokens)
    chosen = [fitting[int((i + 0.5) / case.prompts * len(fitting))] for i in range(case.prompts)]
    return [
        (len(tree.prompt_ids), [max(2, len(ids)) for ids in tree.response_ids[: case.responses]])
        for tree in chosen
    ]


def _quantiles(mean: float, spread: float, count: int) -> list[int]:
    """`count` values at the middle of as many equal shares of a lognormal, its mean kept."""
    places = [(i + 0.5) / count for i in range(count)]
    values = [math.exp(spread * NormalDist().inv_cdf(place)) for place in places]
    scale = mean * count / sum(values)
    return [max(2, round(value * scale)) for value in values]


def _capped(prompt: int, responses: list[int], case: Case) -> tuple[int, list[int]]:
    prompt = min(prompt, case.cap // 2)
    return prompt, [min(length, case.cap - prompt) for length in responses]


def make_trees(case: Case, lengths: Lengths) -> list[TokenTree]:
    """The batch as Penchant takes it."""
    generator = random.Random(SEED + 1)
    vocabulary = SIZES[case.size].vocabulary

    def words(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, vocabulary) for _ in range(count))

    trees = []
    for number, (prompt, responses) in enumerate(lengths):
        response_ids = tuple((*words(length - 1), END) for length in responses)
        trees.append(
            TokenTree(
                row_id=f"bench:{number + 1}",
                prompt_ids=words(prompt),
                response_ids=response_ids,
                response_masks=tuple((True,) * len(ids) for ids in response_ids),
                pairs_P2=_pairs(case),
            )
        )
    return trees


def _pairs(case: Case) -> tuple[tuple[int, int], ...]:
    if case.pairing == "disjoint":
        return tuple((i, i + 1) for i in range(0, case.responses - 1, 2))
    return tuple((0, other) for other in range(1, case.responses))


def as_rows(trees: Sequence[TokenTree]) -> Iterator[dict[str, str]]:
    """The batch as TRL takes it: a row per pair, words for ids; TRL adds the end of the text."""
    for tree in trees:
        for chosen, rejected in tree.pairs_P2:
            yield {
                "prompt": _text(tree.prompt_ids),
                "chosen": " " + _text(tree.response_ids[chosen][:-1]),
                "rejected": " " + _text(tree.response_ids[rejected][:-1]),
            }


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"t{number}" for number in ids)


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer whose word `t17` is the id 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PADDING, "</s>": END} | {f"t{i}": i for i in range(2, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def make_model(case: Case, device: str) -> Any:
    """The reference model, float32, the same in every process; sdpa attention."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    size = SIZES[case.size]
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=max(case.cap, 64),
        tie_word_embeddings=size.tied,
        pad_token_id=PADDING,
        eos_token_id=END,
        bos_token_id=None,
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@torch.no_grad()
def move(model: Any) -> None:
    """Moves the trainable weights a little, so that the policy is not its reference.

    Otherwise the first loss would be log 2 whatever a side computes. Adapters, which start at
    zero, are drawn whole, so that both sides have the same ones.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator, device=device).to(parameter)
        if "lora_" in name:
            parameter.copy_(0.02 * noise)
        else:
            parameter.add_(0.002 * noise)


def num_tokens(trees: Sequence[TokenTree]) -> int:
    """Tokens of the batch, each prompt once: what tokens per second counts on all sides."""
    return sum(tree.num_tokens for tree in trees)


def useful_flops(case: Case, trees: Sequence[TokenTree], *, online: bool) -> float:
    """Matrix products that the step cannot do without: no padding, no prompt twice, nothing again.

    Two per weight and token forward and as many for each gradient: of the inputs, and of the
    weights where they train. Head: scored positions. Attention: keys that a token sees.
    `online` adds the reference's forward pass.
    """
    size = SIZES[case.size]
    scored = sum(len(ids) for tree in trees for ids in tree.response_ids)
    seen = sum(_keys_seen(tree) for tree in trees)
    matrices = 2.0 * size.body * num_tokens(trees) + 2.0 * size.hidden * size.vocabulary * scored
    attention = 4.0 * size.layers * size.hidden * seen
    adapter = 2.0 * case.lora * _adapter_width(size) * num_tokens(trees)
    trained = 2 if case.lora else 3
    return (trained + online) * matrices + (3 + online) * attention + 3 * adapter


def _keys_seen(tree: TokenTree) -> int:
    prompt = len(tree.prompt_ids)
    own = [len(ids) for ids in tree.response_ids]
    return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in own)


def _adapter_width(size: Size) -> int:
    """Inputs and outputs of all adapted matrices."""
    kv_width = size.hidden // size.heads * size.kv_heads
    attention = 4 * size.hidden + 2 * (size.hidden + kv_width)
    return size.layers * (attention + 3 * (size.hidden + size.intermediate))
