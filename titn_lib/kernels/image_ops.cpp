// Operations on uint8 images for data augmentation on a CPU. PyTorch's own versions need 8-byte indices.

#include <cstdint>
#include <cstring>

// Every row's values, replaced by the entries of the row's table of 256.
extern "C" void apply_lut(const uint8_t *x, const uint8_t *table, uint8_t *y, int64_t rows, int64_t length,
                          int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < length; i++) y[r * length + i] = table[r * 256 + x[r * length + i]];
}

// How many of each row's values equal each of the 256 possible ones.
extern "C" void histogram(const uint8_t *x, int32_t *counts, int64_t rows, int64_t length, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    int32_t found[2][256] = {};  // two, because two equal values in a row would wait for each other
    for (int64_t i = 0; i < length; i++) found[i % 2][x[r * length + i]]++;
    for (int v = 0; v < 256; v++) counts[r * 256 + v] = found[0][v] + found[1][v];
  }
}

// A window of each image, height × width, at an offset of its own.
extern "C" void crop(const uint8_t *x, const int64_t *top, const int64_t *left, uint8_t *y, int64_t images,
                     int64_t channels, int64_t height, int64_t width, int64_t from_height, int64_t from_width,
                     int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < images; n++)
    for (int64_t c = n * channels; c < (n + 1) * channels; c++)
      for (int64_t row = 0; row < height; row++)
        memcpy(y + (c * height + row) * width, x + (c * from_height + top[n] + row) * from_width + left[n], width);
}

// Every pixel of an image becomes the one whose index its map holds, counted from 1; or 0, black, for 0.
extern "C" void remap(const uint8_t *x, const int64_t *maps, const int64_t *which, uint8_t *y, int64_t images,
                      int64_t channels, int64_t length, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < images; n++)
    for (int64_t c = 0; c < channels; c++) {
      const int64_t *map = maps + which[n] * length, start = (n * channels + c) * length;
      for (int64_t i = 0; i < length; i++) y[start + i] = map[i] ? x[start + map[i] - 1] : 0;
    }
}
