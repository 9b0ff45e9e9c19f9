"""What a recipe says of generation: where prompts come from, and the endpoint that answers."""

from __future__ import annotations

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.config import DatasetConfig, by_path

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class PromptsConfig(BaseModel):
    """Which prompts are answered: `data`; written short as the path of a file."""

    model_config = _STRICT

    train: tuple[DatasetConfig, ...] = Field(strict=False, min_length=1)
    """File, folder, hub id (`id:config:split`), or a list; each may be {path, fraction, ...}."""
    format: str = Field("auto", min_length=1)
    """Name of the source format, `prompts` for rows without responses; auto: by its columns."""
    chat_template: str | None = None
    """A shipped template (chatml, alpaca, ...) or a Jinja file; default: the tokenizer's."""
    strict: bool = False
    """Whether any row set aside stops the run."""

    _sources = field_validator("train", mode="before")(by_path)


class EndpointConfig(BaseModel):
    """A server that speaks OpenAI's protocol: `endpoint`; written short as its address."""

    model_config = _STRICT

    base_url: str = Field(min_length=1)
    """Where it is, with its version: http://127.0.0.1:8000/v1."""
    api_key_env: str | None = Field(None, min_length=1)
    """Environment variable that holds the key; default: OPENAI_API_KEY, where it is set."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at the same time, of each process."""
    samples_per_request: int = Field(1, ge=1)
    """Answers asked for at once, for servers that know `n`; what is missing is asked for again."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit on new tokens."""
    timeout: float = Field(300.0, gt=0, allow_inf_nan=False)
    """[s] from sending a request to the last byte of its answer."""
    max_retries: int = Field(6, ge=0)
    """Further attempts at a request after the first has failed."""
    backoff: float = Field(1.0, gt=0, allow_inf_nan=False)
    """[s] before the second attempt, about; doubled from attempt to attempt up to a minute."""
    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Send no more than so many, over all processes."""
    tokens_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Use no more than so many, prompts and answers together, over all processes."""

    @model_validator(mode="after")
    def _names_a_variable(self) -> Self:
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            # Not shown: it may be the key.
            raise ValueError(
                "endpoint.api_key_env: what is given cannot be the name of an environment "
                "variable; allowed: letters, digits and _, never the key itself"
            )
        return self

    @model_validator(mode="after")
    def _plain_address(self) -> Self:
        try:
            parts = urlsplit(self.base_url)
            is_plain = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            raise ValueError("endpoint.base_url: not an address that can be read") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            # Not shown: what stands there may be a key.
            raise ValueError(
                "endpoint.base_url: an address without user, password and query is allowed; the "
                "key comes from an environment variable (endpoint.api_key_env)"
            )
        if not is_plain:
            raise ValueError(
                f"endpoint.base_url: given {self.base_url!r}, allowed: an address such as "
                "http://127.0.0.1:8000/v1"
            )
        return self
