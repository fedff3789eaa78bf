"""The attention of short sequences for a GPU, in Triton: softmax(Q Kᵀ / √WIDTH) V, and its gradient.

A program works on one head of one sequence, and keeps it in registers from reading queries, keys and values to writing
the result. ROWS and COLUMNS are LENGTH and WIDTH, padded with zeros to powers of two.
"""

import triton
import triton.language as tl

from titn_lib.kernels.primitives_triton import LOG2_E, dot, softmax2


@triton.jit
def locate(heads, LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where this program's queries lie in qkv, and its results in mixed; and which rows and columns are no padding."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    token = tl.cast(sequence, tl.int64) * LENGTH + row
    feature = head * WIDTH + column
    return (
        token * (3 * heads * WIDTH) + feature,
        token * (heads * WIDTH) + feature,
        (row < LENGTH) & (column < WIDTH),
    )


@triton.jit
def load(qkv_ptr, at, inside, heads, WIDTH: tl.constexpr):
    """Query, key and value."""
    query = tl.load(qkv_ptr + at, mask=inside, other=0.0)
    key = tl.load(qkv_ptr + heads * WIDTH + at, mask=inside, other=0.0)
    value = tl.load(qkv_ptr + 2 * heads * WIDTH + at, mask=inside, other=0.0)
    return query, key, value


@triton.jit
def attend(query, key, scale, LENGTH: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    score = dot(query, tl.trans(key), DTYPE) * (scale * LOG2_E)
    return softmax2(tl.where((tl.arange(0, ROWS) < LENGTH)[None, :], score, float("-inf")))


@triton.jit
def attention_kernel(
    qkv_ptr, mixed_ptr, heads, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """mixed "sequence token (head width)" of qkv "sequence token (three head width)"."""
    at, at_mixed, inside = locate(heads, LENGTH, WIDTH, ROWS, COLUMNS)
    query, key, value = load(qkv_ptr, at, inside, heads, WIDTH)
    attention = attend(query, key, scale, LENGTH, ROWS, query.dtype)
    mixed = dot(attention, value, query.dtype).to(query.dtype)
    tl.store(mixed_ptr + at_mixed, mixed, mask=inside)


@triton.jit
def attention_backward_kernel(
    qkv_ptr, gradient_ptr, result_ptr, heads, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of qkv from that of mixed."""
    at, at_mixed, inside = locate(heads, LENGTH, WIDTH, ROWS, COLUMNS)
    query, key, value = load(qkv_ptr, at, inside, heads, WIDTH)
    d_mixed = tl.load(gradient_ptr + at_mixed, mask=inside, other=0.0)
    dtype = query.dtype
    attention = attend(query, key, scale, LENGTH, ROWS, dtype)
    d_attention = dot(d_mixed, tl.trans(value), dtype)
    d_score = attention * (d_attention - tl.sum(attention * d_attention, 1)[:, None]) * scale
    d_score, attention = d_score.to(dtype), attention.to(dtype)
    tl.store(result_ptr + at, dot(d_score, key, dtype).to(dtype), mask=inside)
    tl.store(result_ptr + heads * WIDTH + at, dot(tl.trans(d_score), query, dtype).to(dtype), mask=inside)
    tl.store(result_ptr + 2 * heads * WIDTH + at, dot(tl.trans(attention), d_mixed, dtype).to(dtype), mask=inside)
