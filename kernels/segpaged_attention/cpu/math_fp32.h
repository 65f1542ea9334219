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
    static constexpr int kDirectRows = 6;        // query rows up to which keys are read in place rather than packed
    typedef Fp32Math Vectors;                    // the arithmetic of the few-rows path
    typedef Storage S;
    typedef typename Lanes<Width>::F F;
    typedef typename Lanes<Width>::U U;

    SEGPAGED_INLINE F dot(F sum, U b, uint32_t a) { return sum + bits<F>(b) * bits<float>(a); }

    SEGPAGED_INLINE F dot_lanes(F sum, U a, U b) { return sum + bits<F>(a) * bits<F>(b); }

    // Lanes step .. step + Width of one row.
    SEGPAGED_INLINE U load_row(const S* row, int step, int steps) {
        (void)steps;
        return bits<U>(load_floats<Width>(row + step));
    }

    // Columns begin .. begin + Count Width of key step `step`.
    template <int Count>
    SEGPAGED_INLINE void load_values(const S* const* rows, int step, int begin, U (&column)[Count]) {
#pragma GCC unroll 8
        for (int v = 0; v < Count; ++v) column[v] = bits<U>(load_floats<Width>(rows[step] + begin + v * Width));
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
        multiply_registers<Fp32Math, Parts>(rows, vectors, high, low, lda, PackedColumns<Fp32Math>{b, ldb}, steps, c, ldc, factors);
    }
};
