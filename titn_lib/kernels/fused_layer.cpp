// Two kernels for a CPU: the attention of short sequences, and a whole transformer layer for few and narrow tokens,
//
//     mixed = softmax(Q Kᵀ / √HEAD_WIDTH) V          x += Attention(LN(x)); x += MLP(LN(x)); normed = LN(x)
//
// each with its gradient. TOKENS, WIDTH, HEADS, HIDDEN and NORM_SIZE (how many values the last LayerNorm normalizes
// together) come from the compiler's command line, so that every loop has a known length. A `vec` holds the same element
// of many sequences, one in each lane. All operations are elementwise: nothing moves between lanes, and the activations
// of a group of sequences stay in the cache from the first product to the last. The backward pass keeps the input only
// and recomputes all other activations.

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), may_alias));
typedef vec tokens[TOKENS][WIDTH], projected[TOKENS][3 * WIDTH], scores[HEADS][TOKENS][TOKENS];

constexpr int HEAD_WIDTH = WIDTH / HEADS;
constexpr float EPSILON = 1e-5f;  // as in nn.LayerNorm
constexpr float LOG2_E = 1.44269504f;  // eˣ = 2^(x log₂ e)
const float SCALE = 1 / std::sqrt(float(HEAD_WIDTH));

// --- vectors

struct bfloat16 { uint16_t bits; };

static inline vec load(const float *from) {
  vec x;
  memcpy(&x, from, sizeof(x));
  return x;
}
static inline vec load(const bfloat16 *from) {
  halves x;
  memcpy(&x, from, sizeof(x));
  return (vec)(__builtin_convertvector(x, ivec) << 16);
}
static inline void store(float *to, vec x) { memcpy(to, &x, sizeof(x)); }
static inline void store(bfloat16 *to, vec x) {  // the nearest, ties to even
  ivec bits = (ivec)x;
  halves y = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
  memcpy(to, &y, sizeof(y));
}

static inline vec splat(float x) { return vec{} + x; }

static inline vec power_of_two(vec x) {  // relative error 2e-7
  x = x < -126.0f ? splat(-126.0f) : x;  // NaN stays NaN
  vec shifted = x + 12582912.0f;  // 1.5 · 2²³: rounds to an integer
  vec r = x - (shifted - 12582912.0f);
  vec p = r * 1.3264727e-3f + 9.6715126e-3f;  // fitted between −½ and ½, for the relative error
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
  return (vec)((ivec)p + ((ivec)shifted << 23));
}

// x Φ(x) and its slope; erf as Abramowitz and Stegun 7.1.26, error 1.5e-7.
static inline vec gelu(vec x, vec &slope) {
  vec size = (vec)((ivec)x & 0x7fffffff);
  vec t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
  vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vec bell = power_of_two(x * x * (-0.5f * LOG2_E));
  vec tail = p * t * bell * 0.5f;  // Φ(−|x|)
  vec phi = x > 0.0f ? 1.0f - tail : tail;
  slope = phi + x * bell * 0.39894228f;
  return x * phi;
}

// --- from memory to lanes and back: COUNT contiguous values, from an address of its own for each lane

#if defined(__clang__)
static inline void transpose(vec *rows) {
  float turned[LANES][LANES];
  for (int i = 0; i < LANES; i++)
    for (int l = 0; l < LANES; l++) turned[l][i] = rows[i][l];
  memcpy(rows, turned, sizeof(turned));
}
#else
template <int HALF> static inline void exchange(vec *rows) {  // swaps the off-diagonal blocks of HALF × HALF
  ivec first, second;
#pragma GCC unroll 16
  for (int l = 0; l < LANES; l++) {
    first[l] = l & HALF ? LANES + l - HALF : l;
    second[l] = l & HALF ? LANES + l : l + HALF;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (!(i & HALF)) {
      vec a = rows[i], b = rows[i + HALF];
      rows[i] = __builtin_shuffle(a, b, first);
      rows[i + HALF] = __builtin_shuffle(a, b, second);
    }
}

static inline void transpose(vec *rows) {
  exchange<1>(rows);
  exchange<2>(rows);
  if (LANES > 4) exchange<4>(rows);
  if (LANES > 8) exchange<LANES / 2>(rows);
}
#endif

template <int COUNT, class T> static inline void gather(const T *const *from, int64_t offset, vec *to) {
  if (COUNT < LANES) {
    for (int l = 0; l < LANES; l++) {
      T row[LANES] = {};
      memcpy(row, from[l] + offset, COUNT % LANES * sizeof(T));
      vec x = load(row);
      for (int i = 0; i < COUNT; i++) to[i][l] = x[i];
    }
    return;
  }
  for (int i = 0; i < COUNT; i += LANES) {
    int at = i + LANES <= COUNT ? i : COUNT - LANES;
    vec rows[LANES];
    for (int l = 0; l < LANES; l++) rows[l] = load(from[l] + offset + at);
    transpose(rows);
    memcpy(to + at, rows, sizeof(rows));
  }
}

template <int COUNT, class T> static inline void scatter(const vec *from, T *const *to, int64_t offset, int lanes) {
  if (COUNT < LANES) {
    for (int l = 0; l < lanes; l++) {
      vec x = {};
      for (int i = 0; i < COUNT; i++) x[i] = from[i][l];
      T row[LANES];
      store(row, x);
      memcpy(to[l] + offset, row, COUNT % LANES * sizeof(T));
    }
    return;
  }
  for (int i = 0; i < COUNT; i += LANES) {
    int at = i + LANES <= COUNT ? i : COUNT - LANES;
    vec rows[LANES];
    memcpy(rows, from + at, sizeof(rows));
    transpose(rows);
    for (int l = 0; l < lanes; l++) store(to[l] + offset + at, rows[l]);
  }
}

// --- products: out(i, j, Σ_k a(i, k) · b(k, j)), in tiles, so that every loaded value is used several times

template <int R, int C, int LENGTH, class A, class B, class Out>
static inline void tile(int i, int j, A a, B b, Out out) {
  vec sums[R][C] = {};
  for (int k = 0; k < LENGTH; k++)
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sums[r][c] += a(i + r, k) * b(k, j + c);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) out(i + r, j + c, sums[r][c]);
}

template <int ROWS, int COLUMNS, int LENGTH, class A, class B, class Out>
static inline void product(A a, B b, Out out) {
  constexpr int R = ROWS < 2 ? ROWS : 2, C = COLUMNS < 6 ? COLUMNS : 6;
  int i = 0;
  for (; i + R <= ROWS; i += R) {
    int j = 0;
    for (; j + C <= COLUMNS; j += C) tile<R, C, LENGTH>(i, j, a, b, out);
    for (; j < COLUMNS; j++) tile<R, 1, LENGTH>(i, j, a, b, out);
  }
  for (; i < ROWS; i++)
    for (int j = 0; j < COLUMNS; j++) tile<1, 1, LENGTH>(i, j, a, b, out);
}

// --- attention

static inline void score(const projected qkv, scores attention) {
  for (int h = 0; h < HEADS; h++) {
    constexpr int QUERY = 0, KEY = WIDTH;
    const int part = h * HEAD_WIDTH;
    auto &row = attention[h];
    product<TOKENS, TOKENS, HEAD_WIDTH>([&](int i, int c) { return qkv[i][QUERY + part + c]; },
                                        [&](int c, int j) { return qkv[j][KEY + part + c]; },
                                        [&](int i, int j, vec sum) { row[i][j] = sum * (SCALE * LOG2_E); });
    for (int i = 0; i < TOKENS; i++) {
      vec top = row[i][0], sum = {};
      for (int j = 1; j < TOKENS; j++) top = row[i][j] > top ? row[i][j] : top;
      for (int j = 0; j < TOKENS; j++) sum += row[i][j] = power_of_two(row[i][j] - top);
      sum = 1.0f / sum;
      for (int j = 0; j < TOKENS; j++) row[i][j] *= sum;
    }
  }
}

static inline void mix(const projected qkv, const scores attention, tokens mixed) {
  for (int h = 0; h < HEADS; h++) {
    constexpr int VALUE = 2 * WIDTH;
    const int part = h * HEAD_WIDTH;
    product<TOKENS, HEAD_WIDTH, TOKENS>([&](int i, int j) { return attention[h][i][j]; },
                                        [&](int j, int c) { return qkv[j][VALUE + part + c]; },
                                        [&](int i, int c, vec sum) { mixed[i][part + c] = sum; });
  }
}

static inline void attention_gradient(const projected qkv, const scores attention, const tokens dmixed, projected dqkv) {
  for (int h = 0; h < HEADS; h++) {
    constexpr int QUERY = 0, KEY = WIDTH, VALUE = 2 * WIDTH;
    const int part = h * HEAD_WIDTH;
    const auto &row = attention[h];
    vec drow[TOKENS][TOKENS];
    product<TOKENS, TOKENS, HEAD_WIDTH>([&](int i, int c) { return dmixed[i][part + c]; },
                                        [&](int c, int j) { return qkv[j][VALUE + part + c]; },
                                        [&](int i, int j, vec sum) { drow[i][j] = sum; });
    for (int i = 0; i < TOKENS; i++) {
      vec mean = {};
      for (int j = 0; j < TOKENS; j++) mean += row[i][j] * drow[i][j];
      for (int j = 0; j < TOKENS; j++) drow[i][j] = row[i][j] * (drow[i][j] - mean) * SCALE;
    }
    product<TOKENS, HEAD_WIDTH, TOKENS>([&](int i, int j) { return drow[i][j]; },
                                        [&](int j, int c) { return qkv[j][KEY + part + c]; },
                                        [&](int i, int c, vec sum) { dqkv[i][QUERY + part + c] = sum; });
    product<TOKENS, HEAD_WIDTH, TOKENS>([&](int j, int i) { return drow[i][j]; },
                                        [&](int i, int c) { return qkv[i][QUERY + part + c]; },
                                        [&](int j, int c, vec sum) { dqkv[j][KEY + part + c] = sum; });
    product<TOKENS, HEAD_WIDTH, TOKENS>([&](int j, int i) { return row[i][j]; },
                                        [&](int i, int c) { return dmixed[i][part + c]; },
                                        [&](int j, int c, vec sum) { dqkv[j][VALUE + part + c] = sum; });
  }
}

#ifndef HIDDEN

// Lanes are pairs of a sequence and a head: here HEADS is 1, WIDTH a head's, and `heads` how many a sequence has.
template <class T> struct Pairs {
  T *query[LANES], *key[LANES], *value[LANES], *mixed[LANES];
  int lanes;
  Pairs(const T *qkv, const T *all, int64_t first, int64_t pairs, int heads)
      : lanes(pairs - first < LANES ? pairs - first : LANES) {
    for (int l = 0; l < LANES; l++) {
      int64_t pair = first + (l < lanes ? l : 0), row = pair / heads * TOKENS * heads, column = pair % heads;
      query[l] = const_cast<T *>(qkv) + (row * 3 + column) * WIDTH;
      key[l] = query[l] + heads * WIDTH;
      value[l] = key[l] + heads * WIDTH;
      mixed[l] = const_cast<T *>(all) + (row + column) * WIDTH;
    }
  }
  void read(projected to, int heads) const {
    for (int t = 0; t < TOKENS; t++) {
      int64_t offset = int64_t(t) * 3 * heads * WIDTH;
      gather<WIDTH>(query, offset, to[t]);
      gather<WIDTH>(key, offset, to[t] + WIDTH);
      gather<WIDTH>(value, offset, to[t] + 2 * WIDTH);
    }
  }
};

template <class T> static void forward(const T *qkv, T *mixed, int64_t sequences, int heads, int threads) {
#pragma omp parallel for num_threads(threads) if (sequences * heads > LANES)
  for (int64_t first = 0; first < sequences * heads; first += LANES) {
    Pairs<T> pairs(qkv, mixed, first, sequences * heads, heads);
    projected x;
    scores attention;
    tokens y;
    pairs.read(x, heads);
    score(x, attention);
    mix(x, attention, y);
    for (int t = 0; t < TOKENS; t++) scatter<WIDTH>(y[t], pairs.mixed, t * heads * WIDTH, pairs.lanes);
  }
}

template <class T>
static void backward(const T *qkv, const T *dmixed, T *dqkv, int64_t sequences, int heads, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < sequences * heads; first += LANES) {
    Pairs<T> pairs(qkv, dmixed, first, sequences * heads, heads), to(dqkv, dmixed, first, sequences * heads, heads);
    projected x, dx;
    scores attention;
    tokens dy;
    pairs.read(x, heads);
    for (int t = 0; t < TOKENS; t++) gather<WIDTH>(pairs.mixed, t * heads * WIDTH, dy[t]);
    score(x, attention);
    attention_gradient(x, attention, dy, dx);
    for (int t = 0; t < TOKENS; t++) {
      int64_t offset = int64_t(t) * 3 * heads * WIDTH;
      scatter<WIDTH>(dx[t], to.query, offset, to.lanes);
      scatter<WIDTH>(dx[t] + WIDTH, to.key, offset, to.lanes);
      scatter<WIDTH>(dx[t] + 2 * WIDTH, to.value, offset, to.lanes);
    }
  }
}

#define ATTENTION(T)                                                                                        \
  extern "C" void attention_##T(const T *x, T *y, int64_t n, int heads, int threads) {                      \
    forward(x, y, n, heads, threads);                                                                       \
  }                                                                                                         \
  extern "C" void attention_backward_##T(const T *x, const T *dy, T *dx, int64_t n, int heads, int threads) { \
    backward(x, dy, dx, n, heads, threads);                                                                 \
  }
ATTENTION(float)
ATTENTION(bfloat16)

#else  // --- the layer

typedef vec hidden[TOKENS][HIDDEN];

// The layer's parameters in this order, one after the other; of vec, their gradients, lane by lane.
template <class T> struct Parameters {
  T attention_norm[2][WIDTH];  // scale, shift
  T qkv[3 * WIDTH][WIDTH], qkv_bias[3 * WIDTH];
  T output[WIDTH][WIDTH], output_bias[WIDTH];
  T mlp_norm[2][WIDTH];
  T up[HIDDEN][WIDTH], up_bias[HIDDEN];
  T down[WIDTH][HIDDEN], down_bias[WIDTH];
  T last_norm[2][NORM_SIZE];
};
constexpr int NORM_ROWS = TOKENS * WIDTH / NORM_SIZE;
constexpr int PARAMETERS = sizeof(Parameters<float>) / sizeof(float);

// All activations of a group of sequences.
struct Group {
  tokens x, unit1, normed1, mixed, middle, unit2, normed2, y;
  vec unit3[NORM_ROWS][NORM_SIZE], normed3[NORM_ROWS][NORM_SIZE];
  vec inverse1[TOKENS], inverse2[TOKENS], inverse3[NORM_ROWS];
  projected qkv;
  scores attention;
  hidden up, slope;
};

template <int ROWS, int N>
static inline void norm(const vec (*x)[N], const float (*parameters)[N], vec (*unit)[N], vec *inverse, vec (*y)[N]) {
  for (int r = 0; r < ROWS; r++) {
    vec mean = {}, variance = {};
    for (int i = 0; i < N; i++) mean += x[r][i];
    mean *= 1.0f / N;
    for (int i = 0; i < N; i++) variance += (x[r][i] - mean) * (x[r][i] - mean);
    variance = variance * (1.0f / N) + EPSILON;
    for (int l = 0; l < LANES; l++) inverse[r][l] = 1 / std::sqrt(variance[l]);
    for (int i = 0; i < N; i++) {
      unit[r][i] = (x[r][i] - mean) * inverse[r];
      y[r][i] = unit[r][i] * parameters[0][i] + parameters[1][i];
    }
  }
}

template <int ROWS, int N>
static inline void norm_gradient(const vec (*unit)[N], const vec *inverse, const float (*parameters)[N],
                                 const vec (*dy)[N], vec (*dparameters)[N], vec (*dx)[N]) {  // adds to dx
  for (int r = 0; r < ROWS; r++) {
    vec mean = {}, along = {};
    for (int i = 0; i < N; i++) {
      mean += dy[r][i] * parameters[0][i];
      along += dy[r][i] * parameters[0][i] * unit[r][i];
      dparameters[0][i] += dy[r][i] * unit[r][i];
      dparameters[1][i] += dy[r][i];
    }
    mean *= 1.0f / N;
    along *= 1.0f / N;
    for (int i = 0; i < N; i++)
      dx[r][i] += (dy[r][i] * parameters[0][i] - mean - unit[r][i] * along) * inverse[r];
  }
}

template <int IN, int OUT>
static inline void linear(const vec (*x)[IN], const float (*weight)[IN], const float *bias, vec (*y)[OUT]) {
  product<TOKENS, OUT, IN>([&](int t, int i) { return x[t][i]; }, [&](int i, int o) { return weight[o][i]; },
                           [&](int t, int o, vec sum) { y[t][o] = sum + bias[o]; });
}

template <int IN, int OUT>
static inline void linear_gradient(const vec (*x)[IN], const float (*weight)[IN], const vec (*dy)[OUT],
                                   vec (*dweight)[IN], vec *dbias, vec (*dx)[IN]) {
  product<TOKENS, IN, OUT>([&](int t, int o) { return dy[t][o]; }, [&](int o, int i) { return weight[o][i]; },
                           [&](int t, int i, vec sum) { dx[t][i] = sum; });
  product<OUT, IN, TOKENS>([&](int o, int t) { return dy[t][o]; }, [&](int t, int i) { return x[t][i]; },
                           [&](int o, int i, vec sum) { dweight[o][i] += sum; });
  for (int t = 0; t < TOKENS; t++)
    for (int o = 0; o < OUT; o++) dbias[o] += dy[t][o];
}

static inline void add(const tokens x, tokens to) {
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < WIDTH; i++) to[t][i] += x[t][i];
}

static inline vec (*norm_rows(const tokens x))[NORM_SIZE] { return (vec (*)[NORM_SIZE])x; }

static void layer(Group &g, const Parameters<float> &p) {
  norm<TOKENS>(g.x, p.attention_norm, g.unit1, g.inverse1, g.normed1);
  linear(g.normed1, p.qkv, p.qkv_bias, g.qkv);
  score(g.qkv, g.attention);
  mix(g.qkv, g.attention, g.mixed);
  linear(g.mixed, p.output, p.output_bias, g.middle);
  add(g.x, g.middle);
  norm<TOKENS>(g.middle, p.mlp_norm, g.unit2, g.inverse2, g.normed2);
  linear(g.normed2, p.up, p.up_bias, g.up);
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < HIDDEN; i++) g.up[t][i] = gelu(g.up[t][i], g.slope[t][i]);
  linear(g.up, p.down, p.down_bias, g.y);
  add(g.middle, g.y);
  norm<NORM_ROWS>(norm_rows(g.y), p.last_norm, g.unit3, g.inverse3, g.normed3);
}

// d: the gradient of the layer's output on the way in, of its input on the way out.
template <class P>
static void layer_gradient(const Group &g, const Parameters<float> &p, const tokens dnormed3, tokens d, P &dp) {
  hidden dup;
  tokens dnormed;
  projected dqkv;
  norm_gradient<NORM_ROWS>(g.unit3, g.inverse3, p.last_norm, norm_rows(dnormed3), dp.last_norm, norm_rows(d));
  linear_gradient(g.up, p.down, d, dp.down, dp.down_bias, dup);
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < HIDDEN; i++) dup[t][i] *= g.slope[t][i];
  linear_gradient(g.normed2, p.up, dup, dp.up, dp.up_bias, dnormed);
  norm_gradient<TOKENS>(g.unit2, g.inverse2, p.mlp_norm, dnormed, dp.mlp_norm, d);
  linear_gradient(g.mixed, p.output, d, dp.output, dp.output_bias, dnormed);
  attention_gradient(g.qkv, g.attention, dnormed, dqkv);
  linear_gradient(g.normed1, p.qkv, dqkv, dp.qkv, dp.qkv_bias, dnormed);
  norm_gradient<TOKENS>(g.unit1, g.inverse1, p.attention_norm, dnormed, dp.attention_norm, d);
}

// An address for each lane; lanes beyond the last sequence repeat the first one's.
template <class T> struct Sequences {
  T *start[LANES];
  int lanes;
  Sequences(const T *x, int64_t first, int64_t sequences)
      : lanes(sequences - first < LANES ? sequences - first : LANES) {
    for (int l = 0; l < LANES; l++) start[l] = const_cast<T *>(x) + (first + (l < lanes ? l : 0)) * TOKENS * WIDTH;
  }
  void read(tokens to) const { gather<TOKENS * WIDTH>(start, 0, to[0]); }
  void read_gradient(tokens to) const {  // lanes without a sequence contribute nothing
    read(to);
    for (int l = lanes; l < LANES; l++)
      for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < WIDTH; i++) to[t][i][l] = 0;
  }
  void write(const vec *from) const { scatter<TOKENS * WIDTH>(from, start, 0, lanes); }
};

template <class T>
static void forward(const float *x, const Parameters<float> *parameters, float *y, T *normed, int64_t sequences,
                    int threads) {
#pragma omp parallel for num_threads(threads) if (sequences > LANES)
  for (int64_t first = 0; first < sequences; first += LANES) {
    Group g;
    Sequences<float>(x, first, sequences).read(g.x);
    layer(g, *parameters);
    Sequences<float>(y, first, sequences).write(g.y[0]);
    Sequences<T>(normed, first, sequences).write(g.normed3[0]);
  }
}

// dparameters: a row of zeros for each thread, so that the sum is deterministic.
template <class T>
static void backward(const float *x, const Parameters<float> *parameters, const float *dy, const T *dnormed3,
                     float *dx, float *dparameters, int64_t sequences, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; thread++) {
    Parameters<vec> sums = {};
    for (int64_t first = thread * LANES; first < sequences; first += threads * LANES) {
      Group g;
      tokens d, dn;
      Sequences<float>(dy, first, sequences).read_gradient(d);
      Sequences<T>(dnormed3, first, sequences).read_gradient(dn);
      Sequences<float>(x, first, sequences).read(g.x);
      layer(g, *parameters);
      layer_gradient(g, *parameters, dn, d, sums);
      Sequences<float>(dx, first, sequences).write(d[0]);
    }
    for (int i = 0; i < PARAMETERS; i++)
      for (int l = 0; l < LANES; l++) dparameters[thread * PARAMETERS + i] += ((const vec *)&sums)[i][l];
  }
}

#define LAYER(T)                                                                                                   \
  extern "C" void layer_##T(const float *x, const Parameters<float> *p, float *y, T *normed, int64_t n,            \
                            int threads) {                                                                         \
    forward(x, p, y, normed, n, threads);                                                                          \
  }                                                                                                                \
  extern "C" void layer_backward_##T(const float *x, const Parameters<float> *p, const float *dy,                  \
                                     const T *dnormed3, float *dx, float *dp, int64_t n, int threads) {            \
    backward(x, p, dy, dnormed3, dx, dp, n, threads);                                                              \
  }
LAYER(float)
LAYER(bfloat16)

#endif
