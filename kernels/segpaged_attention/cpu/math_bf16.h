// Arithmetic of bf16 storage through vdpbf16ps: products of bf16 pairs are exact, sums are fp32. A softmax weight goes in as
// the sum of two bf16 (16 bits of precision): rounded to one, it would cost more accuracy than rounding the output does.
#pragma once

struct Bf16Math {
    static constexpr int kWidth = 16;
    static constexpr int kPanel = 4;
    static constexpr int kRows = 6;
    static constexpr int kStep = 2;
    static constexpr int kParts = 2;
    static constexpr int kChunk = 1;
    static constexpr int kStepGrain = 1;
    static constexpr int kDegree = 4;
    static constexpr int kDirectRows = 8;
    typedef Bf16Math Vectors;
    typedef Bf16 S;
    typedef Lanes<16>::F F;
    typedef Lanes<16>::U U;

    SEGPAGED_INLINE F dot(F sum, U b, uint32_t a) {
        return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
    }

    SEGPAGED_INLINE F dot_lanes(F sum, U a, U b) { return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }

    SEGPAGED_INLINE U load_row(const S* row, int step, int steps) {
        if (steps - step >= 16) return load<U>(row + 2 * step);
        const __mmask16 rest = (__mmask16)((1u << (steps - step)) - 1);
        return (U)_mm512_maskz_loadu_epi32(rest, row + 2 * step);
    }

    // Pairs the rows of two keys column by column: one load a row and one shuffle a vector.
    template <int Count>
    SEGPAGED_INLINE void load_values(const S* const* rows, int step, int begin, U (&column)[Count]) {
        alignas(64) static constexpr uint16_t kPairs[2][32] = {
            {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
            {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
        const S *even = rows[2 * step] + begin, *odd = rows[2 * step + 1] + begin;
#pragma GCC unroll 4
        for (int v = 0; v + 1 < Count; v += 2) {
            __m512i a = load<__m512i>(even + v * 16), b = load<__m512i>(odd + v * 16);
            column[v] = (U)_mm512_permutex2var_epi16(a, load<__m512i>(kPairs[0]), b);
            column[v + 1] = (U)_mm512_permutex2var_epi16(a, load<__m512i>(kPairs[1]), b);
        }
        if constexpr (Count % 2) {
            typedef Lanes<16>::H H;
            U low = __builtin_convertvector(load<H>(even + (Count - 1) * 16), U);
            U high = __builtin_convertvector(load<H>(odd + (Count - 1) * 16), U);
            column[Count - 1] = low | (high << 16);
        }
    }

    // The high part is the weight truncated (one shuffle for two vectors), the low part what that leaves, rounded.
    SEGPAGED_INLINE void put_weights(uint32_t* high, uint32_t* low, int key, F first, F second) {
        alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                          33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        store(high + key / 2, _mm512_permutex2var_epi16((__m512i)first, load<__m512i>(kOdd), (__m512i)second));
        store(low + key / 2, _mm512_cvtne2ps_pbh((__m512)remainder(second), (__m512)remainder(first)));
    }

    SEGPAGED_INLINE void put_weights(uint32_t* high, uint32_t* low, int key, F weight) {
        store(high + key / 2, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)weight, 16)));
        store(low + key / 2, _mm512_cvtneps_pbh((__m512)remainder(weight)));
    }

    SEGPAGED_INLINE F remainder(F weight) { return weight - bits<F>(bits<U>(weight) & 0xffff0000u); }

    SEGPAGED_INLINE void narrow_row(S* target, const float* source, float factor, int size) {
        for (int i = 0; i < size; i += 16)
            store(target + i, _mm512_cvtneps_pbh((__m512)(load<F>(source + i) * factor)));
    }

    SEGPAGED_INLINE void begin() {}
    SEGPAGED_INLINE void end() {}

    template <int Parts>
    SEGPAGED_INLINE void multiply(int rows, int vectors, const uint32_t* high, const uint32_t* low, int lda,
                                  const uint32_t* b, int ldb, int steps, float* c, int ldc, const float* factors) {
        multiply_registers<Bf16Math, Parts>(rows, vectors, high, low, lda, PackedColumns<Bf16Math>{b, ldb}, steps, c, ldc, factors);
    }
};
