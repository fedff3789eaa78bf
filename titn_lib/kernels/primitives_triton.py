"""What the Triton kernels have in common: matrix products, exponentials, GELU, LayerNorm.

Triton's names: `tl.dot` is a matrix product, and a `tl.constexpr` is known when the kernel is compiled.
"""

import os

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-5)  # as in nn.LayerNorm
LOG2_E = tl.constexpr(1.4426950408889634)  # eˣ = 2^(x log₂ e)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, DTYPE: tl.constexpr):
    """The matrix product, of operands in DTYPE, summed in float32."""
    a, b = a.to(DTYPE), b.to(DTYPE)
    if INTERPRETED:  # Triton's interpreter can't multiply bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def norm(x, columns, WIDTH: tl.constexpr):
    """Every row with mean 0 and standard deviation 1, and 1 / standard deviation."""
    mean = tl.sum(x, 1) * (1 / WIDTH)
    centered = tl.where(columns, x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centered * centered, 1) * (1 / WIDTH) + EPSILON)
    return centered * inverse[:, None], inverse


@triton.jit
def norm_gradient(gradient, unit, inverse, WIDTH: tl.constexpr):
    """The gradient of `norm`'s input. Columns beyond the width must be 0 in `gradient`; the result's are undefined."""
    mean = tl.sum(gradient, 1) * (1 / WIDTH)
    slope = tl.sum(gradient * unit, 1) * (1 / WIDTH)
    return (gradient - mean[:, None] - unit * slope[:, None]) * inverse[:, None]


@triton.jit
def sequence_norm(x, columns, same, SIZE: tl.constexpr):
    """As `norm`, but of all SIZE values of a sequence together."""
    mean = sum_sequence(tl.sum(x, 1), same) * (1 / SIZE)
    centered = tl.where(columns, x - mean[:, None], 0.0)
    inverse = tl.rsqrt(sum_sequence(tl.sum(centered * centered, 1), same) * (1 / SIZE) + EPSILON)
    return centered * inverse[:, None], inverse


@triton.jit
def sequence_norm_gradient(gradient, unit, inverse, same, SIZE: tl.constexpr):
    mean = sum_sequence(tl.sum(gradient, 1), same) * (1 / SIZE)
    slope = sum_sequence(tl.sum(gradient * unit, 1), same) * (1 / SIZE)
    return (gradient - mean[:, None] - unit * slope[:, None]) * inverse[:, None]


@triton.jit
def sum_sequence(row_sums, same):
    """For every row, the sum over all rows of its sequence."""
    return tl.sum(tl.where(same, row_sums[None, :], 0.0), 1)


@triton.jit
def exp2(x):
    """2ˣ; a result below 1e-38 is 0, which saves three instructions."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1 / x, to 1e-7."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def softmax2(score):
    """The softmax of every row, with powers of 2: the score holds log₂ e."""
    power = exp2(score - tl.max(score, 1)[:, None])
    return power * reciprocal(tl.sum(power, 1))[:, None]


@triton.jit
def gelu(x):
    """x Φ(x) and its slope; erf as in Abramowitz and Stegun 7.1.26, with an error of 1.5e-7."""
    size = tl.abs(x)
    t = reciprocal(size * (0.3275911 * 0.7071067811865476) + 1.0)
    polynomial = t * 0.5307027145 - 0.7265760135
    polynomial = polynomial * t + 0.7107068705
    polynomial = polynomial * t - 0.142248368
    polynomial = polynomial * t + 0.127414796
    bell = exp2(x * x * (-0.5 * LOG2_E))
    tail = polynomial * t * bell  # Φ(−|x|)
    return tl.maximum(x, 0.0) - size * tail, tl.where(x > 0, 1.0 - tail, tail) + x * bell * 0.3989422804014327
