// Arithmetic of bf16 storage through AMX tiles: 2 x 2 tiles of 16 x 16 sums, 32 bf16 contracted per instruction. Packed keys,
// values and weights have the layout that Bf16Math uses, which is the one tiles want. Vector work stays AVX-512 BF16.
#pragma once

// Tiles 0-3 hold sums (row block, column block), 4-5 the rows of A, 6-7 the columns of B; all are 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct AmxMath : Bf16Math {
    static constexpr int kPanel = 2;
    static constexpr int kRows = 32;
    static constexpr int kChunk = 2;
    static constexpr int kStepGrain = 16;

    SEGPAGED_INLINE void begin() {
        const TileConfig config;
        _tile_loadconfig(&config);
    }

    SEGPAGED_INLINE void end() { _tile_release(); }

    // Whole tiles only: rows of A and C up to the next multiple of 16 are read and written, steps are a multiple of 16.
    template <int Parts>
    SEGPAGED_INLINE void multiply(int rows, int vectors, const uint32_t* high, const uint32_t* low, int lda,
                                  const uint32_t* b, int ldb, int steps, float* c, int ldc, const float* factors) {
        if (factors) {
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < vectors; ++v)
                    store(c + r * ldc + v * 16, load<F>(c + r * ldc + v * 16) * factors[r]);
        }
        if (rows > 16) {
            tiles<Parts, true>(vectors, high, low, lda, b, ldb, steps, c, ldc, factors);
        } else {
            tiles<Parts, false>(vectors, high, low, lda, b, ldb, steps, c, ldc, factors);
        }
    }

    template <int Parts, bool Lower>
    SEGPAGED_INLINE void tiles(int vectors, const uint32_t* high, const uint32_t* low, int lda, const uint32_t* b, int ldb,
                               int steps, float* c, int ldc, const float* factors) {
        const bool right = vectors > 1;
        const int64_t a_stride = (int64_t)lda * 4, b_stride = (int64_t)ldb * 4, c_stride = (int64_t)ldc * 4;
        float* lower = c + 16 * (int64_t)ldc;
        if (factors) {
            _tile_loadd(0, c, c_stride);
            if (right) _tile_loadd(1, c + 16, c_stride);
            if (Lower) _tile_loadd(2, lower, c_stride);
            if (Lower && right) _tile_loadd(3, lower + 16, c_stride);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int step = 0; step < steps; step += 16) {
            const uint32_t* column = b + (int64_t)step * ldb;
            _tile_loadd(6, column, b_stride);
            if (right) _tile_loadd(7, column + 16, b_stride);
            for (int part = 0; part < Parts; ++part) {
                const uint32_t* row = (part ? low : high) + step;
                _tile_loadd(4, row, a_stride);
                _tile_dpbf16ps(0, 4, 6);
                if (right) _tile_dpbf16ps(1, 4, 7);
                if (Lower) {
                    _tile_loadd(5, row + 16 * (int64_t)lda, a_stride);
                    _tile_dpbf16ps(2, 5, 6);
                    if (right) _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        _tile_stored(0, c, c_stride);
        if (right) _tile_stored(1, c + 16, c_stride);
        if (Lower) _tile_stored(2, lower, c_stride);
        if (Lower && right) _tile_stored(3, lower + 16, c_stride);
    }
};
