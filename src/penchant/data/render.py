"""Comparisons into text: what the chat template makes of the conversation, before tokenising.

The response is everything rendered after the prompt, and the prompt is rendered with the
generation prompt. Plain strings are not put through a chat template: they are what the model sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from penchant.data import fields
from penchant.data.rows import RowError
from penchant.errors import DataError, MissingFileError
from penchant.types import Comparison, Message

Span = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True)
class Rendered:
    """The text of one comparison."""

    prompt: str
    wholes: tuple[str, ...]
    """Prompt and response, per response; each starts with the prompt."""
    scored: tuple[tuple[Span, ...] | None, ...]
    """Per whole: characters of assistant turns after the prompt; None: all of them."""
    is_plain: bool
    """Strings: BOS and EOS are still to be added."""
    not_printed: str = ""
    """A tool's words, or its name in a call, that the template left out without saying so."""


def shipped_templates() -> list[str]:
    """Names of the chat templates inside the package."""
    folder = resources.files("penchant.data") / "templates"
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".jinja") for name in names if name.endswith(".jinja"))


def chat_template(setting: str) -> str:
    """Jinja text of a shipped template (chatml, alpaca, zephyr, llama-2, plain) or of a file.

    Raises MissingFileError for anything else.
    """
    if setting in shipped_templates():
        return (resources.files("penchant.data") / "templates" / f"{setting}.jinja").read_text()
    path = Path(setting).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    raise MissingFileError(
        f"no chat template {setting!r}: no such Jinja file, and the shipped templates are "
        f"{', '.join(shipped_templates())}"
    )


@dataclass(frozen=True)
class Renderer:
    """Renders with one tokenizer's chat template, or with another one."""

    tokenizer: Any
    template: str | None = None
    """Jinja text; None: the tokenizer's own."""
    train_on: Literal["last", "all"] = "last"
    """Of a conversation without pairs: its last assistant turn, or every one."""

    def render(self, comparison: Comparison) -> Rendered:
        """Text of prompt and responses.

        Raises:
            RowError: `template_not_prefix`, `template_error`, `empty_prompt`.
            DataError: messages, and no chat template.
        """
        if isinstance(comparison.prompt, str):
            strings = [str(response) for response in comparison.responses]
            wholes = tuple(comparison.prompt + response for response in strings)
            return Rendered(comparison.prompt, wholes, (None,) * len(wholes), True)
        if self.template is None and self.tokenizer.chat_template is None:
            raise DataError(
                f"{comparison.row_id} holds messages, but the tokenizer has no chat template; "
                f"name one with data.chat_template=chatml (or "
                f"{', '.join(name for name in shipped_templates() if name != 'chatml')}, or a file)"
            )
        return self._conversations(self._split(comparison))

    def _split(self, comparison: Comparison) -> Comparison:
        """With `train_on` last the prompt of a lone response reaches up to its last turn."""
        if self.train_on != "last" or comparison.pairs or len(comparison.responses) != 1:
            return comparison
        turns: Sequence[Message] = comparison.responses[0]  # type: ignore[assignment]
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        prompt = (*comparison.prompt, *turns[:last])
        return replace(comparison, prompt=prompt, responses=(tuple(turns[last:]),))

    def _conversations(self, comparison: Comparison) -> Rendered:
        prompt: Any = comparison.prompt
        branches: Any = comparison.responses
        if not prompt:
            raise RowError("empty_prompt", "no turn comes before the response")
        answers = all(branch[0]["role"] == "assistant" for branch in branches)
        kwargs = comparison.template_kwargs
        head = self._apply(prompt, kwargs, answers)
        wholes = tuple(self._apply(prompt + branch, kwargs, False) for branch in branches)
        for whole in wholes:
            _require_prefix(whole, head)
            fields.checked_string(whole, "what the template prints")
        scored = tuple(
            None if answers and len(branch) == 1 else self._spans(prompt, branch, whole, kwargs)
            for branch, whole in zip(branches, wholes, strict=True)
        )
        missing = (_not_printed(prompt + b, whole) for b, whole in zip(branches, wholes))
        return Rendered(head, wholes, scored, False, next(filter(None, missing), ""))

    def _spans(
        self, prompt: Any, branch: Any, whole: str, kwargs: Mapping[str, Any]
    ) -> tuple[Span, ...]:
        """Characters of the assistant's turns in a branch of several turns, turn by turn."""
        spans = []
        for index, turn in enumerate(branch):
            if turn["role"] != "assistant":
                continue
            before = self._apply(prompt + branch[:index], kwargs, True)
            through = self._apply(prompt + branch[: index + 1], kwargs, False)
            _require_prefix(whole, before)
            _require_prefix(whole, through)
            spans.append((len(before), len(through)))
        return tuple(spans)

    def _apply(self, messages: Any, kwargs: Mapping[str, Any], generation: bool) -> str:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                chat_template=self.template,
                add_generation_prompt=generation,
                **kwargs,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not valid Jinja: {error}") from error
        except Exception as error:
            # A template is a program, run on whatever the row holds: any error is the row's.
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise RowError("template_error", detail[:200]) from error


def _require_prefix(whole: str, head: str) -> None:
    if not whole.startswith(head):
        raise RowError(
            "template_not_prefix",
            "the prompt with its generation prompt is not how the whole conversation begins",
        )


def _not_printed(turns: Sequence[Message], whole: str) -> str:
    """What a tool said, or which one was called, where the template prints nothing of it."""
    for turn in turns:
        said = [turn["content"]] if turn["role"] == "tool" else []
        calls = turn.get("tool_calls") or ()
        functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
        said += [str(one.get("name", "")) for one in functions if isinstance(one, Mapping)]
        for text in said:
            if text.strip() not in whole:
                return text.strip()
    return ""
