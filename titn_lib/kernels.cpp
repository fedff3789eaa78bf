// Two kernels for a CPU: the attention of short sequences, and a whole transformer layer for few and narrow tokens,
//
//     mixed = softmax(Q Kᵀ / √HEAD_WIDTH) V          x += Attention(LN(x)); x += MLP(LN(x))
//
// each with its gradient. TOKENS, WIDTH, HEADS and HIDDEN come from the compiler's command line, so that every loop has
// a known length. A `vec` holds the same number of many sequences, one in each lane: all arithmetic is element by
// element, nothing moves between lanes, and what a group of sequences needs stays in the cache from the first product
// to the last. Gradients are made from the input alone; what lies between is computed again.

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
typedef vec tokens[TOKENS][WIDTH], projected[TOKENS][3 * WIDTH], scores[HEADS][TOKENS][TOKENS];

constexpr int HEAD_WIDTH = WIDTH / HEADS;
constexpr float EPSILON = 1e-5f;  // as in nn.LayerNorm
const float SCALE = 1 / std::sqrt(float(HEAD_WIDTH));

// --- numbers

struct bfloat16 { uint16_t bits; };

static inline float widen(float x) { return x; }
static inline float widen(bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
static inline void round_to(float *to, float x) { *to = x; }
static inline void round_to(bfloat16 *to, float x) {  // the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  to->bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline vec splat(float x) { return vec{} + x; }

static inline vec exponential(vec x) {  // relative error 2e-7
  x = x > -87.0f ? x : splat(-87.0f);
  vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2²³: what is behind the point falls off
  vec n = shifted - 12582912.0f;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes' expf
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
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
  vec bell = exponential(x * x * -0.5f);
  vec tail = p * t * bell * 0.5f;  // Φ(−|x|)
  vec phi = x > 0.0f ? 1.0f - tail : tail;
  slope = phi + x * bell * 0.39894228f;
  return x * phi;
}

// --- from memory to lanes and back: `count` numbers in a row, from a place of its own for each lane

static inline void transpose(vec *rows) {
#if defined(__clang__)
  float turned[LANES][LANES];
  for (int i = 0; i < LANES; i++)
    for (int l = 0; l < LANES; l++) turned[l][i] = rows[i][l];
  memcpy(rows, turned, sizeof(turned));
#else
  for (int half = LANES / 2; half; half /= 2) {
    ivec first, second;
    for (int l = 0; l < LANES; l++) {
      first[l] = l & half ? LANES + l - half : l;
      second[l] = l & half ? LANES + l : l + half;
    }
    for (int i = 0; i < LANES; i++)
      if (!(i & half)) {
        vec a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, first);
        rows[i + half] = __builtin_shuffle(a, b, second);
      }
  }
#endif
}

template <int COUNT, class T> static inline void gather(const T *const *from, int64_t offset, vec *to) {
  if (COUNT < LANES) {
    for (int i = 0; i < COUNT; i++)
      for (int l = 0; l < LANES; l++) to[i][l] = widen(from[l][offset + i]);
    return;
  }
  for (int i = 0; i < COUNT; i += LANES) {
    int at = i + LANES <= COUNT ? i : COUNT - LANES;
    vec rows[LANES];
    for (int l = 0; l < LANES; l++)
      for (int k = 0; k < LANES; k++) rows[l][k] = widen(from[l][offset + at + k]);
    transpose(rows);
    memcpy(to + at, rows, sizeof(rows));
  }
}

template <int COUNT, class T> static inline void scatter(const vec *from, T *const *to, int64_t offset, int lanes) {
  if (COUNT < LANES) {
    for (int l = 0; l < lanes; l++)
      for (int i = 0; i < COUNT; i++) round_to(&to[l][offset + i], from[i][l]);
    return;
  }
  for (int i = 0; i < COUNT; i += LANES) {
    int at = i + LANES <= COUNT ? i : COUNT - LANES;
    vec rows[LANES];
    memcpy(rows, from + at, sizeof(rows));
    transpose(rows);
    for (int l = 0; l < lanes; l++)
      for (int k = 0; k < LANES; k++) round_to(&to[l][offset + at + k], rows[l][k]);
  }
}

// --- products: out(i, j, Σ_k a(i, k) · b(k, j)), in tiles, so that a number that is loaded serves several times

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

static inline void attend(const projected qkv, scores attention, tokens mixed) {
  for (int h = 0; h < HEADS; h++) {
    constexpr int QUERY = 0, KEY = WIDTH, VALUE = 2 * WIDTH;
    const int part = h * HEAD_WIDTH;
    auto &row = attention[h];
    product<TOKENS, TOKENS, HEAD_WIDTH>([&](int i, int c) { return qkv[i][QUERY + part + c]; },
                                        [&](int c, int j) { return qkv[j][KEY + part + c]; },
                                        [&](int i, int j, vec sum) { row[i][j] = sum * SCALE; });
    for (int i = 0; i < TOKENS; i++) {
      vec top = row[i][0], sum = {};
      for (int j = 1; j < TOKENS; j++) top = row[i][j] > top ? row[i][j] : top;
      for (int j = 0; j < TOKENS; j++) sum += row[i][j] = exponential(row[i][j] - top);
      sum = 1.0f / sum;
      for (int j = 0; j < TOKENS; j++) row[i][j] *= sum;
    }
    product<TOKENS, HEAD_WIDTH, TOKENS>([&](int i, int j) { return row[i][j]; },
                                        [&](int j, int c) { return qkv[j][VALUE + part + c]; },
                                        [&](int i, int c, vec sum) { mixed[i][part + c] = sum; });
  }
}

static inline void attend_gradient(const projected qkv, const scores attention, const tokens dmixed, projected dqkv) {
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
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < sequences * heads; first += LANES) {
    Pairs<T> pairs(qkv, mixed, first, sequences * heads, heads);
    projected x;
    scores attention;
    tokens y;
    pairs.read(x, heads);
    attend(x, attention, y);
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
    tokens y, dy;
    pairs.read(x, heads);
    for (int t = 0; t < TOKENS; t++) gather<WIDTH>(pairs.mixed, t * heads * WIDTH, dy[t]);
    attend(x, attention, y);
    attend_gradient(x, attention, dy, dx);
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
};
constexpr int PARAMETERS = sizeof(Parameters<float>) / sizeof(float);

// All that happens to a group of sequences on the way through the layer.
struct Group {
  tokens x, unit1, normed1, mixed, middle, unit2, normed2, y;
  vec inverse1[TOKENS], inverse2[TOKENS];
  projected qkv;
  scores attention;
  hidden up, slope;
};

static inline void norm(const tokens x, const float (*parameters)[WIDTH], tokens unit, vec *inverse, tokens y) {
  for (int t = 0; t < TOKENS; t++) {
    vec mean = {}, variance = {};
    for (int i = 0; i < WIDTH; i++) mean += x[t][i];
    mean *= 1.0f / WIDTH;
    for (int i = 0; i < WIDTH; i++) variance += (x[t][i] - mean) * (x[t][i] - mean);
    variance = variance * (1.0f / WIDTH) + EPSILON;
    for (int l = 0; l < LANES; l++) inverse[t][l] = 1 / std::sqrt(variance[l]);
    for (int i = 0; i < WIDTH; i++) {
      unit[t][i] = (x[t][i] - mean) * inverse[t];
      y[t][i] = unit[t][i] * parameters[0][i] + parameters[1][i];
    }
  }
}

static inline void norm_gradient(const tokens unit, const vec *inverse, const float (*parameters)[WIDTH],
                                 const tokens dy, vec (*dparameters)[WIDTH], tokens dx) {  // adds to dx
  for (int t = 0; t < TOKENS; t++) {
    vec mean = {}, along = {};
    for (int i = 0; i < WIDTH; i++) {
      mean += dy[t][i] * parameters[0][i];
      along += dy[t][i] * parameters[0][i] * unit[t][i];
      dparameters[0][i] += dy[t][i] * unit[t][i];
      dparameters[1][i] += dy[t][i];
    }
    mean *= 1.0f / WIDTH;
    along *= 1.0f / WIDTH;
    for (int i = 0; i < WIDTH; i++)
      dx[t][i] += (dy[t][i] * parameters[0][i] - mean - unit[t][i] * along) * inverse[t];
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

static void layer(Group &g, const Parameters<float> &p) {
  norm(g.x, p.attention_norm, g.unit1, g.inverse1, g.normed1);
  linear(g.normed1, p.qkv, p.qkv_bias, g.qkv);
  attend(g.qkv, g.attention, g.mixed);
  linear(g.mixed, p.output, p.output_bias, g.middle);
  add(g.x, g.middle);
  norm(g.middle, p.mlp_norm, g.unit2, g.inverse2, g.normed2);
  linear(g.normed2, p.up, p.up_bias, g.up);
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < HIDDEN; i++) g.up[t][i] = gelu(g.up[t][i], g.slope[t][i]);
  linear(g.up, p.down, p.down_bias, g.y);
  add(g.middle, g.y);
}

// d: the gradient of the layer's output on the way in, of its input on the way out.
template <class P> static void layer_gradient(const Group &g, const Parameters<float> &p, tokens d, P &dp) {
  hidden dup;
  tokens dnormed;
  projected dqkv;
  linear_gradient(g.up, p.down, d, dp.down, dp.down_bias, dup);
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < HIDDEN; i++) dup[t][i] *= g.slope[t][i];
  linear_gradient(g.normed2, p.up, dup, dp.up, dp.up_bias, dnormed);
  norm_gradient(g.unit2, g.inverse2, p.mlp_norm, dnormed, dp.mlp_norm, d);
  linear_gradient(g.mixed, p.output, d, dp.output, dp.output_bias, dnormed);
  attend_gradient(g.qkv, g.attention, dnormed, dqkv);
  linear_gradient(g.normed1, p.qkv, dqkv, dp.qkv, dp.qkv_bias, dnormed);
  norm_gradient(g.unit1, g.inverse1, p.attention_norm, dnormed, dp.attention_norm, d);
}

// One place in memory for each lane; lanes beyond the last sequence repeat the first one's.
struct Sequences {
  float *start[LANES];
  int lanes;
  Sequences(const float *x, int64_t first, int64_t sequences)
      : lanes(sequences - first < LANES ? sequences - first : LANES) {
    for (int l = 0; l < LANES; l++) start[l] = const_cast<float *>(x) + (first + (l < lanes ? l : 0)) * TOKENS * WIDTH;
  }
  void read(tokens to) const { gather<TOKENS * WIDTH>(start, 0, to[0]); }
  void write(const tokens from) const { scatter<TOKENS * WIDTH>(from[0], start, 0, lanes); }
};

extern "C" void layer(const float *x, const Parameters<float> *parameters, float *y, int64_t sequences, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < sequences; first += LANES) {
    Group g;
    Sequences(x, first, sequences).read(g.x);
    layer(g, *parameters);
    Sequences(y, first, sequences).write(g.y);
  }
}

// dparameters: a row of zeros for each thread, so that the sum comes out the same every time.
extern "C" void layer_backward(const float *x, const Parameters<float> *parameters, const float *dy, float *dx,
                               float *dparameters, int64_t sequences, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; thread++) {
    Parameters<vec> sums = {};
    for (int64_t first = thread * LANES; first < sequences; first += threads * LANES) {
      Group g;
      tokens d;
      Sequences place(dy, first, sequences);
      place.read(d);
      for (int l = place.lanes; l < LANES; l++)  // lanes without a sequence count for nothing
        for (int t = 0; t < TOKENS; t++)
          for (int i = 0; i < WIDTH; i++) d[t][i][l] = 0;
      Sequences(x, first, sequences).read(g.x);
      layer(g, *parameters);
      layer_gradient(g, *parameters, d, sums);
      Sequences(dx, first, sequences).write(d);
    }
    for (int i = 0; i < PARAMETERS; i++)
      for (int l = 0; l < LANES; l++) dparameters[thread * PARAMETERS + i] += ((const vec *)&sums)[i][l];
  }
}

#endif
