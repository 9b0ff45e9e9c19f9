"""The head's tiles on a CUDA device: kernels, tiles of any size, what is held of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penchant.engine import logprob_head, tile_kernels, tile_maths, tile_sizes
from penchant.engine.logprob_head import Head
from penchant.engine.tile_maths import Shape
from penchant.engine.workspace import Workspace
from tests.cuda.device import NEEDS_CUDA

pytestmark = NEEDS_CUDA
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=["float32", "bfloat16"],
)
TOKENS, VOCABULARY, HIDDEN = 700, 50_257, 64


@pytest.mark.parametrize("width", [1, 3, 4096, 4097, 50_257, 131_072])
def test_kernels_against_float64(width: int) -> None:
    torch.manual_seed(width)
    logits = (8 * torch.randn(33, width, device="cuda")).bfloat16()
    targets = torch.randint(width, (33,), device="cuda")
    assert tile_kernels.is_available(logits)
    expected = logits.double().log_softmax(1)
    value, lse = tile_maths.log_sum_exp(logits, targets)
    rounding = {"rtol": 1e-5, "atol": 1e-5}
    picked = expected.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(value.double(), picked, **rounding)
    torch.testing.assert_close(lse.double(), logits.double().logsumexp(1), **rounding)
    again, _ = tile_maths.softmax_(logits, targets)
    torch.testing.assert_close(again, value, **rounding)
    torch.testing.assert_close(logits.double(), expected.exp(), rtol=1e-2, atol=1e-6)


def test_a_logit_that_is_not_a_number_is_not_hidden() -> None:
    logits = torch.zeros(2, 5000, device="cuda")
    logits[1, 4321] = float("nan")
    value, _ = tile_maths.log_sum_exp(logits, torch.zeros(2, dtype=torch.long, device="cuda"))
    assert value[0].isfinite() and value[1].isnan()


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, device="cuda", generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), device="cuda", generator=generator)
    return hidden.requires_grad_(), (0.3 * weight).requires_grad_(), targets


def judged(values_T: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the squares, and its derivative."""
    return values_T.square().sum() / TOKENS, 2 * values_T / TOKENS


@DTYPES
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "twice"])
@pytest.mark.parametrize("rows", [8192, 129])
def test_loss_and_gradients(
    dtype: torch.dtype, tolerance: float, keeps: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_sizes, "_CUDA_ROWS", rows)
    hidden, weight, targets = inputs(dtype)
    wide, exact = (t.detach().double().requires_grad_() for t in (hidden, weight))
    values = (wide @ exact.T).log_softmax(1).gather(1, targets[:, None])[:, 0]
    expected = values.square().sum() / TOKENS
    expected.backward()

    autocast = torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with autocast:
        head = Head(weight, Shape(), Workspace())
        groups = [(0, 300, judged), (300, TOKENS, judged)]
        bytes_ = tile_sizes.tile_bytes(hidden.device) if keeps else 1
        found = logprob_head.loss(hidden, head, targets, groups, bytes_)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    for got, want in ((hidden.grad, wide.grad), (weight.grad, exact.grad)):
        assert (got.double() - want).norm() <= tolerance * want.norm()


def test_no_tensor_holds_all_logits() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    whole = TOKENS * VOCABULARY * 2
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        values = logprob_head.logps(hidden, Head(weight, Shape(), Workspace()), targets)
    values.sum().backward()
    gradients = 4 * weight.numel() + 2 * hidden.numel()
    copy = 2 * weight.numel()
    held = torch.cuda.max_memory_allocated() - resting - gradients - copy
    assert held < 0.75 * whole
