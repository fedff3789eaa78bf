"""The transformer layer of `fused_layer.cpp` for a GPU, in Triton: a forward and a backward kernel.

    x += Attention(LN(x)); x += MLP(LN(x)); normed = LN(x)

A program, which is one warp, works on tiles of ROWS tokens: one sequence each, or several whole ones. All that comes
between reading x and writing the results stays in its registers. As tensor cores multiply matrices of 16 × 16 and more,
widths are padded with zeros. One mask keeps the sequences of a tile apart in the attention, another picks the columns
of a head. The MLP's hidden layer is computed in chunks. The backward pass keeps the input only and recomputes all other
activations. NaN in one sequence of a tile becomes NaN in all of them.

Two rearrangements save work. The first two norms' scale and shift are folded into the Linear after them:
(unit · scale + shift) W + b = unit (scale · W) + (shift W + b). And a bias is one more row of its weight, multiplied by
a column of ones, so that its gradient comes with the weight's.
"""

import triton
import triton.language as tl

from titn_lib.kernels.primitives_triton import (
    LOG2_E,
    dot,
    gelu,
    norm,
    norm_gradient,
    sequence_norm,
    sequence_norm_gradient,
    softmax2,
)


@triton.jit
def of_head(column, head, WIDTH: tl.constexpr):
    return ((column >= head * WIDTH) & (column < (head + 1) * WIDTH))[None, :]


@triton.jit
def attend(query, key, same, MASK: tl.constexpr, DTYPE: tl.constexpr):
    """The attention within the sequences of a tile. The query holds the scale and log₂ e."""
    score = dot(query, tl.trans(key), DTYPE)
    if MASK:
        score = tl.where(same, score, float("-inf"))
    return softmax2(score)


@triton.jit
def load_vector(start, index, SIZE: tl.constexpr):
    return tl.load(start + index, mask=index < SIZE, other=0.0)


@triton.jit
def load_linear(weight, bias, ins, outs, INS: tl.constexpr, OUTS: tl.constexpr):
    """A Linear as "in out", with its bias as row INS."""
    used = outs[None, :] < OUTS
    matrix = tl.load(weight + outs[None, :] * INS + ins[:, None], mask=used & (ins[:, None] < INS), other=0.0)
    return tl.where(ins[:, None] == INS, load_vector(bias, outs, OUTS)[None, :], matrix)


@triton.jit
def load_matrix(weight, ins, outs, INS: tl.constexpr, OUTS: tl.constexpr):
    """The weight of a Linear as "in out"."""
    mask = (ins[:, None] < INS) & (outs[None, :] < OUTS)
    return tl.load(weight + outs[None, :] * INS + ins[:, None], mask=mask, other=0.0)


@triton.jit
def store_linear(weight, bias, gradient, ins, outs, INS: tl.constexpr, OUTS: tl.constexpr):
    """The inverse of `load_linear`."""
    used = outs[None, :] < OUTS
    tl.store(weight + outs[None, :] * INS + ins[:, None], gradient, mask=used & (ins[:, None] < INS))
    tl.store(bias + outs[None, :] + ins[:, None] * 0, gradient, mask=used & (ins[:, None] == INS))


@triton.jit
def fold_norm(linear, scale, shift, ins, WIDTH: tl.constexpr):
    """The Linear that does the same to a normalized row as scale, shift and `linear`."""
    bias = tl.sum(linear * shift[:, None], 0)
    return linear * tl.where(ins == WIDTH, 1.0, scale)[:, None] + tl.where(ins[:, None] == WIDTH, bias[None, :], 0.0)


@triton.jit
def unfold_gradient(gradient, linear, scale, shift, ins, WIDTH: tl.constexpr):
    """From the gradient of the folded Linear, those of Linear, scale and shift."""
    bias = tl.sum(tl.where(ins[:, None] == WIDTH, gradient, 0.0), 0)
    weight = gradient * tl.where(ins == WIDTH, 1.0, scale)[:, None] + shift[:, None] * bias[None, :]
    return weight, tl.sum(gradient * linear, 1), tl.sum(linear * bias[None, :], 1)


@triton.jit
def load_weights(
    parameters, scale, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Each Linear, with the norm before it; `up` and `down` in chunks. `parameters`: see `flatten_params`."""
    column = tl.arange(0, COLUMNS)
    scale1, shift1 = load_vector(parameters, column, WIDTH), load_vector(parameters + WIDTH, column, WIDTH)
    parameters += 2 * WIDTH
    bias = parameters + 3 * WIDTH * WIDTH
    to_query = load_linear(parameters, bias, column, column, WIDTH, WIDTH)
    to_key = load_linear(parameters + WIDTH * WIDTH, bias + WIDTH, column, column, WIDTH, WIDTH)
    to_value = load_linear(parameters + 2 * WIDTH * WIDTH, bias + 2 * WIDTH, column, column, WIDTH, WIDTH)
    to_query = (fold_norm(to_query, scale1, shift1, column, WIDTH) * (scale * LOG2_E)).to(DTYPE)
    to_key = fold_norm(to_key, scale1, shift1, column, WIDTH).to(DTYPE)
    to_value = fold_norm(to_value, scale1, shift1, column, WIDTH).to(DTYPE)
    parameters = bias + 3 * WIDTH
    project = load_linear(parameters, parameters + WIDTH * WIDTH, column, column, WIDTH, WIDTH).to(DTYPE)
    parameters += WIDTH * WIDTH + WIDTH
    scale2, shift2 = load_vector(parameters, column, WIDTH), load_vector(parameters + WIDTH, column, WIDTH)
    parameters += 2 * WIDTH
    bias = parameters + HIDDEN * WIDTH
    up, down = (), ()
    for chunk in tl.static_range((HIDDEN + CHUNK - 1) // CHUNK):
        hidden = chunk * CHUNK + tl.arange(0, CHUNK)
        part = load_linear(parameters, bias, column, hidden, WIDTH, HIDDEN)
        up = up + (fold_norm(part, scale2, shift2, column, WIDTH).to(DTYPE),)
        down = down + (load_matrix(bias + HIDDEN, hidden, column, HIDDEN, WIDTH).to(DTYPE),)
    down_bias = load_vector(bias + HIDDEN + HIDDEN * WIDTH, column, WIDTH)
    return to_query, to_key, to_value, project, up, down, down_bias


@triton.jit
def forward(
    x, weights, column, same, WIDTH: tl.constexpr, HEADS: tl.constexpr, MASK: tl.constexpr, DTYPE: tl.constexpr
):
    """The layer's output, and what its gradient needs."""
    to_query, to_key, to_value, project, up, down, down_bias = weights
    columns, ones = (column < WIDTH)[None, :], (column == WIDTH)[None, :]
    unit1, inverse1 = norm(x, columns, WIDTH)
    input1 = tl.where(ones, 1.0, unit1).to(DTYPE)
    query, key = dot(input1, to_query, DTYPE).to(DTYPE), dot(input1, to_key, DTYPE).to(DTYPE)
    value = dot(input1, to_value, DTYPE).to(DTYPE)
    mixed = tl.where(ones, 1.0, tl.zeros(x.shape, tl.float32))
    for head in tl.static_range(HEADS):
        mine = of_head(column, head, WIDTH // HEADS)
        attention = attend(tl.where(mine, query, 0.0), key, same, MASK, DTYPE)
        mixed += dot(attention, tl.where(mine, value, 0.0), DTYPE)
    mixed = mixed.to(DTYPE)
    x += dot(mixed, project, DTYPE)
    unit2, inverse2 = norm(x, columns, WIDTH)
    input2 = tl.where(ones, 1.0, unit2).to(DTYPE)
    x += down_bias[None, :]
    hidden, slopes = (), ()
    for chunk in tl.static_range(len(up)):
        activated, slope = gelu(dot(input2, up[chunk], DTYPE))
        hidden, slopes = hidden + (activated.to(DTYPE),), slopes + (slope,)
        x += dot(activated, down[chunk], DTYPE)
    return x, (unit1, inverse1, input1, query, key, value, mixed, unit2, inverse2, input2, hidden, slopes)


@triton.jit
def layer_kernel(
    x_ptr, parameters, result_ptr, normed_ptr, sequences, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HIDDEN: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """result and normed of x, all "sequence token width"."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    columns = (column < WIDTH)[None, :]
    same = (row // LENGTH)[:, None] == (row // LENGTH)[None, :]
    per_tile: tl.constexpr = ROWS // LENGTH
    weights = load_weights(parameters, scale, WIDTH, HIDDEN, COLUMNS, CHUNK, DTYPE)
    parameters += 4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN + 9 * WIDTH + HIDDEN
    if WHOLE:
        at = (row % LENGTH)[:, None] * WIDTH + column[None, :]
        scale3 = tl.load(parameters + at, mask=columns, other=0.0)
        shift3 = tl.load(parameters + LENGTH * WIDTH + at, mask=columns, other=0.0)
    else:
        scale3 = load_vector(parameters, column, WIDTH)[None, :]
        shift3 = load_vector(parameters + WIDTH, column, WIDTH)[None, :]

    for tile in range(tl.program_id(0), tl.cdiv(sequences, per_tile), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * per_tile
        inside = (row < tl.minimum(sequences - first, per_tile) * LENGTH)[:, None] & columns
        offsets = first * LENGTH * WIDTH + row[:, None] * WIDTH + column[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
        x, _ = forward(x, weights, column, same, WIDTH, HEADS, ROWS != LENGTH, DTYPE)
        tl.store(result_ptr + offsets, x, mask=inside)
        if WHOLE:
            unit, _ = sequence_norm(x, columns, same, LENGTH * WIDTH)
        else:
            unit, _ = norm(x, columns, WIDTH)
        tl.store(normed_ptr + offsets, (unit * scale3 + shift3).to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mlp_gradient(d, x, hidden, slopes, up, down, d_up, d_down, DTYPE: tl.constexpr):
    """The sums of the weights' gradients with this tile's added, and the gradient of x, the input of `up`."""
    d_x = tl.zeros(x.shape, tl.float32)
    more_up, more_down = (), ()
    for chunk in tl.static_range(len(up)):
        more_down = more_down + (d_down[chunk] + dot(tl.trans(hidden[chunk]), d, DTYPE),)
        d_hidden = (dot(d, tl.trans(down[chunk]), DTYPE) * slopes[chunk]).to(DTYPE)
        more_up = more_up + (d_up[chunk] + dot(tl.trans(x), d_hidden, DTYPE),)
        d_x += dot(d_hidden, tl.trans(up[chunk]), DTYPE)
    return more_up, more_down, d_x


@triton.jit
def attention_gradient(
    d, query, key, value, column, same, WIDTH: tl.constexpr, HEADS: tl.constexpr, MASK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradients of query (which holds the scale and log₂ e), key and value from that of the mixed values."""
    d_query = tl.zeros(query.shape, tl.float32)
    d_key = tl.zeros(query.shape, tl.float32)
    d_value = tl.zeros(query.shape, tl.float32)
    for head in tl.static_range(HEADS):
        mine = of_head(column, head, WIDTH)
        query_of_head, d_of_head = tl.where(mine, query, 0.0), tl.where(mine, d, 0.0)
        attention = attend(query_of_head, key, same, MASK, DTYPE)
        d_attention = dot(d_of_head, tl.trans(value), DTYPE)
        mean = tl.sum(attention * d_attention, 1)
        d_score = (attention * (d_attention - mean[:, None])).to(DTYPE)
        d_query += dot(d_score, tl.where(mine, key, 0.0), DTYPE)
        d_key += dot(tl.trans(d_score), query_of_head, DTYPE)
        d_value += dot(tl.trans(attention.to(DTYPE)), d_of_head, DTYPE)
    return (d_query / LOG2_E).to(DTYPE), (d_key / LOG2_E).to(DTYPE), d_value.to(DTYPE)


@triton.jit
def backward(
    d, weights, saved, sums, column, same, WIDTH: tl.constexpr, HEADS: tl.constexpr, MASK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of `forward`'s x from that of its output, and the weights' sums with this tile's added."""
    to_query, to_key, to_value, project, up, down, _ = weights
    unit1, inverse1, input1, query, key, value, mixed, unit2, inverse2, input2, hidden, slopes = saved
    d_to_query, d_to_key, d_to_value, d_project, d_up, d_down, d_down_bias = sums
    columns = (column < WIDTH)[None, :]
    d_down_bias += tl.sum(d, 0)
    d_up, d_down, d_unit = mlp_gradient(d.to(DTYPE), input2, hidden, slopes, up, down, d_up, d_down, DTYPE)
    d += norm_gradient(tl.where(columns, d_unit, 0.0), unit2, inverse2, WIDTH)
    d_out = d.to(DTYPE)
    d_project += dot(tl.trans(mixed), d_out, DTYPE)
    d_mixed = dot(d_out, tl.trans(project), DTYPE).to(DTYPE)
    d_query, d_key, d_value = attention_gradient(
        d_mixed, query, key, value, column, same, WIDTH // HEADS, HEADS, MASK, DTYPE
    )
    d_to_query += dot(tl.trans(input1), d_query, DTYPE)
    d_to_key += dot(tl.trans(input1), d_key, DTYPE)
    d_to_value += dot(tl.trans(input1), d_value, DTYPE)
    d_unit = dot(d_query, tl.trans(to_query), DTYPE) + dot(d_key, tl.trans(to_key), DTYPE)
    d_unit = tl.where(columns, d_unit + dot(d_value, tl.trans(to_value), DTYPE), 0.0)
    d += norm_gradient(d_unit, unit1, inverse1, WIDTH)
    return d, (d_to_query, d_to_key, d_to_value, d_project, d_up, d_down, d_down_bias)


@triton.jit
def zero_sums(weights):
    """Zeros for the gradient of each of the weights."""
    to_query, _, _, _, up, down, down_bias = weights
    square = tl.zeros(to_query.shape, tl.float32)
    d_up, d_down = (), ()
    for chunk in tl.static_range(len(up)):
        d_up = d_up + (tl.zeros(up[chunk].shape, tl.float32),)
        d_down = d_down + (tl.zeros(down[chunk].shape, tl.float32),)
    return square, square, square, square, d_up, d_down, tl.zeros(down_bias.shape, tl.float32)


@triton.jit
def layer_backward_kernel(
    x_ptr, parameters, gradient_ptr, normed_gradient_ptr, result_ptr, sums_ptr, sequences, scale,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HIDDEN: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and each program's sums of the parameters' gradients, in the order of the parameters. A
    norm over whole sequences has sums for each sequence of a tile."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    columns = (column < WIDTH)[None, :]
    same = (row // LENGTH)[:, None] == (row // LENGTH)[None, :]
    per_tile: tl.constexpr = ROWS // LENGTH
    before_norm3: tl.constexpr = 4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN + 9 * WIDTH + HIDDEN
    weights = load_weights(parameters, scale, WIDTH, HIDDEN, COLUMNS, CHUNK, DTYPE)
    if WHOLE:
        at = parameters + before_norm3 + (row % LENGTH)[:, None] * WIDTH + column[None, :]
        scale3 = tl.load(at, mask=columns, other=0.0)
    else:
        scale3 = load_vector(parameters + before_norm3, column, WIDTH)[None, :]
    sums = zero_sums(weights)
    d_scale3, d_shift3 = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)

    for tile in range(tl.program_id(0), tl.cdiv(sequences, per_tile), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * per_tile
        inside = (row < tl.minimum(sequences - first, per_tile) * LENGTH)[:, None] & columns
        offsets = first * LENGTH * WIDTH + row[:, None] * WIDTH + column[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
        x, saved = forward(x, weights, column, same, WIDTH, HEADS, ROWS != LENGTH, DTYPE)
        d_normed = tl.load(normed_gradient_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(gradient_ptr + offsets, mask=inside, other=0.0)
        if WHOLE:
            unit, inverse = sequence_norm(x, columns, same, LENGTH * WIDTH)
            d += sequence_norm_gradient(d_normed * scale3, unit, inverse, same, LENGTH * WIDTH)
        else:
            unit, inverse = norm(x, columns, WIDTH)
            d += norm_gradient(d_normed * scale3, unit, inverse, WIDTH)
        d_scale3 += d_normed * unit
        d_shift3 += d_normed
        d, sums = backward(d, weights, saved, sums, column, same, WIDTH, HEADS, ROWS != LENGTH, DTYPE)
        tl.store(result_ptr + offsets, d, mask=inside)

    rows_of_norm3: tl.constexpr = per_tile * LENGTH if WHOLE else 1
    sums_ptr += tl.program_id(0) * (before_norm3 + 2 * rows_of_norm3 * WIDTH)
    store_gradients(sums_ptr, parameters, scale, sums, WIDTH, HIDDEN, COLUMNS, CHUNK)
    sums_ptr += before_norm3
    if WHOLE:
        at, used = sums_ptr + row[:, None] * WIDTH + column[None, :], (row < rows_of_norm3)[:, None] & columns
        tl.store(at, d_scale3, mask=used)
        tl.store(at + rows_of_norm3 * WIDTH, d_shift3, mask=used)
    else:
        tl.store(sums_ptr + column, tl.sum(d_scale3, 0), mask=column < WIDTH)
        tl.store(sums_ptr + WIDTH + column, tl.sum(d_shift3, 0), mask=column < WIDTH)


@triton.jit
def store_gradients(
    sums_ptr, parameters, scale_of_query, sums, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of the parameters from those of `load_weights`."""
    d_to_query, d_to_key, d_to_value, d_project, d_up, d_down, d_down_bias = sums
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    scale, shift = load_vector(parameters, column, WIDTH), load_vector(parameters + WIDTH, column, WIDTH)
    d_scale, d_shift = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for part in tl.static_range(3):
        at, bias_at = 2 * WIDTH + part * WIDTH * WIDTH, 2 * WIDTH + 3 * WIDTH * WIDTH + part * WIDTH
        linear = load_linear(parameters + at, parameters + bias_at, column, column, WIDTH, WIDTH)
        d_linear = (d_to_query * (scale_of_query * LOG2_E), d_to_key, d_to_value)[part]
        d_linear, more_scale, more_shift = unfold_gradient(d_linear, linear, scale, shift, column, WIDTH)
        store_linear(sums_ptr + at, sums_ptr + bias_at, d_linear, column, column, WIDTH, WIDTH)
        d_scale, d_shift = d_scale + more_scale, d_shift + more_shift
    tl.store(sums_ptr + column, d_scale, mask=used)
    tl.store(sums_ptr + WIDTH + column, d_shift, mask=used)
    proj: tl.constexpr = 5 * WIDTH + 3 * WIDTH * WIDTH
    store_linear(sums_ptr + proj, sums_ptr + proj + WIDTH * WIDTH, d_project, column, column, WIDTH, WIDTH)
    norm2: tl.constexpr = 6 * WIDTH + 4 * WIDTH * WIDTH
    scale = load_vector(parameters + norm2, column, WIDTH)
    shift = load_vector(parameters + norm2 + WIDTH, column, WIDTH)
    d_scale, d_shift = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    matrix_up: tl.constexpr = norm2 + 2 * WIDTH
    bias_up: tl.constexpr = matrix_up + HIDDEN * WIDTH
    matrix_down: tl.constexpr = bias_up + HIDDEN
    for chunk in tl.static_range(len(d_up)):
        hidden = chunk * CHUNK + tl.arange(0, CHUNK)
        linear = load_linear(parameters + matrix_up, parameters + bias_up, column, hidden, WIDTH, HIDDEN)
        d_linear, more_scale, more_shift = unfold_gradient(d_up[chunk], linear, scale, shift, column, WIDTH)
        store_linear(sums_ptr + matrix_up, sums_ptr + bias_up, d_linear, column, hidden, WIDTH, HIDDEN)
        at = sums_ptr + matrix_down + column[None, :] * HIDDEN + hidden[:, None]
        tl.store(at, d_down[chunk], mask=used[None, :] & (hidden[:, None] < HIDDEN))
        d_scale, d_shift = d_scale + more_scale, d_shift + more_shift
    tl.store(sums_ptr + norm2 + column, d_scale, mask=used)
    tl.store(sums_ptr + norm2 + WIDTH + column, d_shift, mask=used)
    tl.store(sums_ptr + matrix_down + HIDDEN * WIDTH + column, d_down_bias, mask=used)
