"""The attention of short sequences for a GPU, in Triton: softmax(Q Kᵀ / √WIDTH) V, and its gradient.

A program works on one head of one sequence, and keeps it in registers from reading queries, keys and values to writing
the result. ROWS and COLUMNS are LENGTH and WIDTH, padded with zeros to powers of two.
"""

import triton
import triton.language as tl

from titn_lib.kernels.primitives_triton import LOG2_E, dot, exp2, reciprocal


@triton.jit
def attend(query, key, scale, LENGTH: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    score = dot(query, tl.trans(key), DTYPE) * (scale * LOG2_E)
    score = tl.where((tl.arange(0, ROWS) < LENGTH)[None, :], score, float("-inf"))
    power = exp2(score - tl.max(score, 1)[:, None])
    return power * reciprocal(tl.sum(power, 1))[:, None]


@triton.jit
def attention_kernel(
    qkv_ptr, mixed_ptr, heads, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """mixed "sequence token (head width)" of qkv "sequence token (three head width)"."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (row < LENGTH) & (column < WIDTH)
    token = tl.cast(sequence, tl.int64) * LENGTH + row
    at = token * (3 * heads * WIDTH) + head * WIDTH + column
    query = tl.load(qkv_ptr + at, mask=inside, other=0.0)
    key = tl.load(qkv_ptr + heads * WIDTH + at, mask=inside, other=0.0)
    value = tl.load(qkv_ptr + 2 * heads * WIDTH + at, mask=inside, other=0.0)
    attention = attend(query, key, scale, LENGTH, ROWS, query.dtype)
    mixed = dot(attention, value, query.dtype).to(query.dtype)
    tl.store(mixed_ptr + token * (heads * WIDTH) + head * WIDTH + column, mixed, mask=inside)


@triton.jit
def attention_backward_kernel(
    qkv_ptr, gradient_ptr, result_ptr, heads, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of qkv from that of mixed."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (row < LENGTH) & (column < WIDTH)
    token = tl.cast(sequence, tl.int64) * LENGTH + row
    at = token * (3 * heads * WIDTH) + head * WIDTH + column
    query = tl.load(qkv_ptr + at, mask=inside, other=0.0)
    key = tl.load(qkv_ptr + heads * WIDTH + at, mask=inside, other=0.0)
    value = tl.load(qkv_ptr + 2 * heads * WIDTH + at, mask=inside, other=0.0)
    d_mixed = tl.load(gradient_ptr + token * (heads * WIDTH) + head * WIDTH + column, mask=inside, other=0.0)
    dtype = query.dtype
    attention = attend(query, key, scale, LENGTH, ROWS, dtype)
    d_attention = dot(d_mixed, tl.trans(value), dtype)
    d_score = attention * (d_attention - tl.sum(attention * d_attention, 1)[:, None]) * scale
    d_score, attention = d_score.to(dtype), attention.to(dtype)
    tl.store(result_ptr + at, dot(d_score, key, dtype).to(dtype), mask=inside)
    tl.store(result_ptr + heads * WIDTH + at, dot(tl.trans(d_score), query, dtype).to(dtype), mask=inside)
    tl.store(result_ptr + 2 * heads * WIDTH + at, dot(tl.trans(attention), d_mixed, dtype).to(dtype), mask=inside)
