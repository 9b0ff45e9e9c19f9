"""Triton kernels over the rows of a tile of logits; a program takes a row, block by block.

Imported by engine/tile_kernels.py alone, where Triton is installed. The
compiler reads annotations of arguments: other types than its own have no place there.
"""

import triton
import triton.language as tl


@triton.jit
def sum_rows(logits, targets, values, lses, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Log-sum-exp of each row, and the log-probability of its target."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    places = tl.arange(0, BLOCK)
    # Each lane keeps its own maximum and sum; a finite start keeps empty lanes out of NaN.
    highest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        own = tl.load(logits + start + places, mask=start + places < width, other=-1e30)
        own = own.to(tl.float32)
        higher = tl.maximum(highest, own)
        total = total * tl.exp(highest - higher) + tl.exp(own - higher)
        highest = higher
    top = tl.max(highest, 0)
    # A lane that met nothing counted one for a value of -1e30, which exp(highest - top) removes.
    lse = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    chosen = tl.load(logits + tl.load(targets + row)).to(tl.float32)
    tl.store(values + row, chosen - lse)
    tl.store(lses + row, lse)


@triton.jit
def to_probabilities(logits, lses, width, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """exp(logit - log-sum-exp), in place."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lse = tl.load(lses + row)
    places = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        there = start + places < width
        own = tl.load(logits + start + places, mask=there, other=0.0).to(tl.float32)
        tl.store(logits + start + places, tl.exp(own - lse), mask=there)
