"""Rows in real layouts, files of them, and tokenizers trained on the fly."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from penchant import data
from penchant.types import Comparison

TEXT = [
    "How do I boil an egg? Put it into boiling water for eight minutes, then cool it.",
    "Which is larger, three or seven? Seven is larger than three. The answer is seven.",
    "Write a short note to a friend. Dear friend, thank you for the lovely evening.\n\nYours",
    "user assistant system <|user|> Ünïcödé 日本語 العربية 🙂 \t tabs\r\n and lines",
] * 5


def ask(text: str) -> dict[str, str]:
    """The user's turn."""
    return {"role": "user", "content": text}


def say(text: str) -> dict[str, str]:
    """The assistant's turn."""
    return {"role": "assistant", "content": text}


def preference_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Messages, scores and an id, as binarised UltraFeedback has them."""
    row = {
        "prompt": [ask(f"How do I boil egg number {number}?")],
        "chosen": [say(f"Put egg {number} into boiling water for eight minutes.")],
        "rejected": [say("No idea.")],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
        "prompt_id": f"egg-{number}",
    }
    return {**row, **changes}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON lines; strings are written as they are (a broken line, say); gzip by suffix."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Comparison:
    """The comparison that a file of this one row holds."""
    return data.load(write_rows(tmp_path / "one.jsonl", [row]), **options)[0]


@functools.cache
def bpe_tokenizer(has_bos: bool = False, template: str | None = "chatml") -> Any:
    """Byte-level BPE with merges, ChatML's tokens, EOS, and BOS where asked for."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    bos = {"bos_token": "<bos>"} if has_bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", **bos)
    fast.chat_template = None if template is None else data.chat_template(template)
    return fast


@functools.cache
def spaced_tokenizer() -> Any:
    """As Llama 2's: words begin with a mark, and one is put before every text."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    raw.train_from_iterator(TEXT, trainer)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def whole_ids(tokenizer: Any, messages: Any) -> tuple[int, ...]:
    """What the tokenizer's own template makes of a whole conversation."""
    return tuple(tokenizer.apply_chat_template(list(messages), return_dict=False))
