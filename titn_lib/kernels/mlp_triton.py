"""The MLP of a transformer layer for a GPU, with the residual addition and the LayerNorm before it:

    x = tokens + update;  result = down(GELU(up(LN(x))))

A program works on ROWS tokens. It computes the hidden layer CHUNK features at a time and adds each chunk's share to the
result at once, so that the hidden layer, the widest tensor of the network, never leaves the processor in the forward
pass. The backward pass recomputes it, and writes it once, for the gradients of the weights: these sum over all tokens,
which a library's matrix product does best.

A token's features are split into parts of PART columns, because Triton's blocks have powers of two: six parts of 32
make a width of 192. Weights are as in `nn.Linear`: up "hidden width", down "width hidden".
"""

import triton
import triton.language as tl

from titn_lib.kernels.primitives_triton import EPSILON, dot, gelu


@triton.jit
def locate(tokens, ROWS: tl.constexpr):
    """This program's first token, its rows, and which of these are tokens. Offsets from the first one take 32 bits."""
    first, row = tl.cast(tl.program_id(0), tl.int64) * ROWS, tl.arange(0, ROWS)[:, None]
    return first, row, row < tokens - first


@triton.jit
def load_parts(pointers, inside, WIDTH: tl.constexpr, PART: tl.constexpr):
    parts = ()
    for part in tl.static_range(WIDTH // PART):
        parts = parts + (tl.load(pointers + part * PART, mask=inside, other=0.0),)
    return parts


@triton.jit
def load_vector(pointer, WIDTH: tl.constexpr, PART: tl.constexpr):
    """A vector of the width, in parts."""
    parts = ()
    for part in tl.static_range(WIDTH // PART):
        parts = parts + (tl.load(pointer + part * PART + tl.arange(0, PART))[None, :],)
    return parts


@triton.jit
def zeros(WIDTH: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr):
    parts = ()
    for _ in tl.static_range(WIDTH // PART):
        parts = parts + (tl.zeros([ROWS, PART], tl.float32),)
    return parts


@triton.jit
def row_mean(parts, WIDTH: tl.constexpr):
    total = tl.sum(parts[0], 1)
    for part in tl.static_range(1, len(parts)):
        total += tl.sum(parts[part], 1)
    return (total * (1 / WIDTH))[:, None]


@triton.jit
def multiply(parts, others):
    products = ()
    for part in tl.static_range(len(parts)):
        products = products + (parts[part] * others[part],)
    return products


@triton.jit
def add(parts, others):
    sums = ()
    for part in tl.static_range(len(parts)):
        sums = sums + (parts[part] + others[part].to(tl.float32),)
    return sums


@triton.jit
def norm(x, WIDTH: tl.constexpr):
    """Every row with mean 0 and standard deviation 1, and 1 / standard deviation."""
    mean, centered, unit = row_mean(x, WIDTH), (), ()
    for part in tl.static_range(len(x)):
        centered = centered + (x[part] - mean,)
    inverse = tl.rsqrt(row_mean(multiply(centered, centered), WIDTH) + EPSILON)
    for part in tl.static_range(len(x)):
        unit = unit + (centered[part] * inverse,)
    return unit, inverse


@triton.jit
def scale_shift(unit, scale, shift, DTYPE: tl.constexpr):
    normed = ()
    for part in tl.static_range(len(unit)):
        normed = normed + ((unit[part] * scale[part] + shift[part]).to(DTYPE),)
    return normed


@triton.jit
def up_block(up, start, part, WIDTH: tl.constexpr, PART: tl.constexpr, CHUNK: tl.constexpr):
    """ "CHUNK PART" of the up weight."""
    row, column = start + tl.arange(0, CHUNK)[:, None], part * PART + tl.arange(0, PART)[None, :]
    return tl.load(up + row * WIDTH + column)


@triton.jit
def down_block(down, start, part, HIDDEN: tl.constexpr, PART: tl.constexpr, CHUNK: tl.constexpr):
    """ "PART CHUNK" of the down weight."""
    row, column = part * PART + tl.arange(0, PART)[:, None], start + tl.arange(0, CHUNK)[None, :]
    return tl.load(down + row * HIDDEN + column)


@triton.jit
def hidden_chunk(
    normed, up, up_bias, start, WIDTH: tl.constexpr, PART: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr
):
    """CHUNK features of the hidden layer after GELU, and the slopes of GELU."""
    before = tl.zeros([normed[0].shape[0], CHUNK], tl.float32) + tl.load(up_bias + start + tl.arange(0, CHUNK))[None, :]
    for part in tl.static_range(WIDTH // PART):
        before += dot(normed[part], tl.trans(up_block(up, start, part, WIDTH, PART, CHUNK)), DTYPE)
    return gelu(before)


@triton.jit
def mlp_kernel(
    tokens_ptr, update_ptr, scale_ptr, shift_ptr, up, up_bias, down, down_bias, x_ptr, result_ptr, tokens,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PART: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """x and result of tokens and update, all "token width"."""
    first, row, inside = locate(tokens, ROWS)
    at = row * WIDTH + tl.arange(0, PART)[None, :]
    tokens_ptr, update_ptr = tokens_ptr + first * WIDTH, update_ptr + first * WIDTH
    x_ptr, result_ptr = x_ptr + first * WIDTH, result_ptr + first * WIDTH
    x = add(load_parts(tokens_ptr + at, inside, WIDTH, PART), load_parts(update_ptr + at, inside, WIDTH, PART))
    for part in tl.static_range(WIDTH // PART):
        tl.store(x_ptr + at + part * PART, x[part], mask=inside)
    unit, _ = norm(x, WIDTH)
    normed = scale_shift(unit, load_vector(scale_ptr, WIDTH, PART), load_vector(shift_ptr, WIDTH, PART), DTYPE)
    result = zeros(WIDTH, PART, ROWS)
    for start in range(0, HIDDEN, CHUNK):
        hidden = hidden_chunk(normed, up, up_bias, start, WIDTH, PART, CHUNK, DTYPE)[0]
        more = ()
        for part in tl.static_range(WIDTH // PART):
            block = down_block(down, start, part, HIDDEN, PART, CHUNK)
            more = more + (result[part] + dot(hidden, tl.trans(block), DTYPE),)
        result = more
    bias = load_vector(down_bias, WIDTH, PART)
    for part in tl.static_range(WIDTH // PART):
        tl.store(result_ptr + at + part * PART, (result[part] + bias[part]).to(DTYPE), mask=inside)


@triton.jit
def mlp_backward_kernel(
    x_ptr, scale_ptr, shift_ptr, up, up_bias, down, x_gradient_ptr, gradient_ptr,
    d_x_ptr, normed_ptr, hidden_ptr, d_hidden_ptr, sums_ptr, tokens,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PART: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """From the gradients of x and result: that of tokens and update, d_x; what those of the Linears need, their inputs
    `normed` and `hidden` and the gradient of the hidden layer before GELU; and each program's sums of those of scale
    and shift."""
    first, row, inside = locate(tokens, ROWS)
    at, at_hidden = row * WIDTH + tl.arange(0, PART)[None, :], row * HIDDEN + tl.arange(0, CHUNK)[None, :]
    x_gradient_ptr, gradient_ptr = x_gradient_ptr + first * WIDTH, gradient_ptr + first * WIDTH
    x_ptr, d_x_ptr, normed_ptr = x_ptr + first * WIDTH, d_x_ptr + first * WIDTH, normed_ptr + first * WIDTH
    hidden_ptr, d_hidden_ptr = hidden_ptr + first * HIDDEN, d_hidden_ptr + first * HIDDEN
    scale = load_vector(scale_ptr, WIDTH, PART)
    unit, _ = norm(load_parts(x_ptr + at, inside, WIDTH, PART), WIDTH)
    normed = scale_shift(unit, scale, load_vector(shift_ptr, WIDTH, PART), DTYPE)
    for part in tl.static_range(WIDTH // PART):
        tl.store(normed_ptr + at + part * PART, normed[part], mask=inside)
    gradient = load_parts(gradient_ptr + at, inside, WIDTH, PART)
    d_normed = zeros(WIDTH, PART, ROWS)
    for start in range(0, HIDDEN, CHUNK):
        hidden, slope = hidden_chunk(normed, up, up_bias, start, WIDTH, PART, CHUNK, DTYPE)
        tl.store(hidden_ptr + at_hidden + start, hidden.to(DTYPE), mask=inside)
        d_hidden = tl.zeros([ROWS, CHUNK], tl.float32)
        for part in tl.static_range(WIDTH // PART):
            d_hidden += dot(gradient[part], down_block(down, start, part, HIDDEN, PART, CHUNK), DTYPE)
        d_hidden = (d_hidden * slope).to(DTYPE)
        tl.store(d_hidden_ptr + at_hidden + start, d_hidden, mask=inside)
        more = ()
        for part in tl.static_range(WIDTH // PART):
            block = up_block(up, start, part, WIDTH, PART, CHUNK)
            more = more + (d_normed[part] + dot(d_hidden, block, DTYPE),)
        d_normed = more

    unit, inverse = norm(load_parts(x_ptr + at, inside, WIDTH, PART), WIDTH)  # again: registers are scarce in the loop
    sums_ptr += tl.program_id(0) * (2 * WIDTH) + tl.arange(0, PART)
    d_scale, d_unit = multiply(d_normed, unit), multiply(d_normed, scale)
    mean, slope = row_mean(d_unit, WIDTH), row_mean(multiply(d_unit, unit), WIDTH)
    for part in tl.static_range(WIDTH // PART):
        tl.store(sums_ptr + part * PART, tl.sum(d_scale[part], 0))
        tl.store(sums_ptr + WIDTH + part * PART, tl.sum(d_normed[part], 0))
        d_x = tl.load(x_gradient_ptr + at + part * PART, mask=inside, other=0.0)
        d_x += (d_unit[part] - mean - unit[part] * slope) * inverse
        tl.store(d_x_ptr + at + part * PART, d_x, mask=inside)
