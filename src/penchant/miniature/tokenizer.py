"""A byte-level tokenizer in which every word of the miniature is one token.

The vocabulary is the special tokens, the 256 bytes and the words with the space before them;
there are no merges, so a word that the miniature does not know is spelt in bytes: nothing is ever
unknown. The chat template is ChatML without the line break after `<|im_end|>`; each header is one
token, and the space after it makes the first word of a turn the same token as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|im_end|>"
HEADERS = tuple(f"<|im_start|>{role}\n" for role in ("system", "user", "assistant"))
SIGNS = (".", ",", ":", "?", "!")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
"""A word, a digit or a sign, each with the space before it."""


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words; ids depend on nothing but their order.

    Args
        words: words, digits and signs without spaces.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" a")[0][0][0]
    pieces = [PAD, END, *HEADERS, *alphabet, *(space + word for word in words)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(HEADERS),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
