// Arithmetic of a variant that multiplies in fp32: every storage type is widened once, when its tile is packed.
#pragma once

template <int Width, int PanelVectors, int BlockRows, class Storage>
struct Fp32Math {
    static constexpr int kWidth = Width;         // lanes of a vector
    static constexpr int kPanel = PanelVectors;  // vectors of a panel: columns the inner kernel holds in registers
    static constexpr int kRows = BlockRows;      // rows the inner kernel holds in registers
    static constexpr int kStep = 1;              // elements a 32-bit lane carries along the contracted dimension
    static constexpr int kParts = 1;             // addends a softmax weight is split into
    static constexpr int kChunk = 1;             // vectors that key ranges are rounded to
    static constexpr int kStepGrain = 1;         // contracted steps the inner kernel takes at once
    static constexpr int kDegree = sizeof(Storage) == 4 ? 6 : 4;
    typedef Storage S;
    typedef typename Lanes<Width>::F F;
    typedef typename Lanes<Width>::U U;

    SEGPAGED_INLINE F dot(F sum, U b, uint32_t a) { return sum + bits<F>(b) * bits<float>(a); }

    // Lanes step .. step + Width of one row.
    SEGPAGED_INLINE U load_row(const S* row, int step, int steps) {
        (void)steps;
        return bits<U>(load_floats<Width>(row + step));
    }

    // Columns column .. column + Width of key step `step`.
    SEGPAGED_INLINE U load_value(const S* const* rows, int step, int column) {
        return bits<U>(load_floats<Width>(rows[step] + column));
    }

    SEGPAGED_INLINE void put_weights(uint32_t* high, uint32_t* low, int key, F weight) {
        (void)low;
        store(high + key, weight);
    }

    SEGPAGED_INLINE void put_weights(uint32_t* high, uint32_t* low, int key, F first, F second) {
        put_weights(high, low, key, first);
        put_weights(high, low, key + Width, second);
    }

    SEGPAGED_INLINE void narrow_row(S* target, const float* source, float factor, int size) {
        for (int i = 0; i < size; ++i) store_rounded(target + i, source[i] * factor);
    }

    SEGPAGED_INLINE void begin() {}
    SEGPAGED_INLINE void end() {}

    template <int Parts>
    SEGPAGED_INLINE void multiply(int rows, int vectors, const uint32_t* high, const uint32_t* low, int lda,
                                  const uint32_t* b, int ldb, int steps, float* c, int ldc, const float* factors) {
        multiply_registers<Fp32Math, Parts>(rows, vectors, high, low, lda, b, ldb, steps, c, ldc, factors);
    }
};
