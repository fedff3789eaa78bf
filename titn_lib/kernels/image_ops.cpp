// Bytes by table, for `augment` on a CPU. PyTorch can do each of these, by way of eight-byte indices.

#include <cstdint>
#include <cstring>

// Every row's bytes, looked up in the row's table of 256.
extern "C" void look_up(const uint8_t *x, const uint8_t *table, uint8_t *y, int64_t rows, int64_t length, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < length; i++) y[r * length + i] = table[r * 256 + x[r * length + i]];
}

// How many of each row's bytes have each of the 256 values.
extern "C" void count(const uint8_t *x, int32_t *counts, int64_t rows, int64_t length, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    int32_t found[2][256] = {};  // two, because equal neighbours would wait for each other
    for (int64_t i = 0; i < length; i++) found[i % 2][x[r * length + i]]++;
    for (int v = 0; v < 256; v++) counts[r * 256 + v] = found[0][v] + found[1][v];
  }
}

// A window of each picture, height × width, at its own place.
extern "C" void cut(const uint8_t *x, const int64_t *top, const int64_t *left, uint8_t *y, int64_t pictures,
                    int64_t channels, int64_t height, int64_t width, int64_t from_height, int64_t from_width,
                    int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t p = 0; p < pictures; p++)
    for (int64_t c = p * channels; c < (p + 1) * channels; c++)
      for (int64_t row = 0; row < height; row++)
        memcpy(y + (c * height + row) * width, x + (c * from_height + top[p] + row) * from_width + left[p], width);
}

// Every place of a picture gets the byte at the place that its map names, counted from 1; or 0, black, for 0.
extern "C" void move(const uint8_t *x, const int64_t *maps, const int64_t *map, uint8_t *y, int64_t pictures,
                     int64_t channels, int64_t length, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t p = 0; p < pictures; p++)
    for (int64_t c = 0; c < channels; c++) {
      const int64_t *from = maps + map[p] * length, start = (p * channels + c) * length;
      for (int64_t i = 0; i < length; i++) y[start + i] = from[i] ? x[start + from[i] - 1] : 0;
    }
}
