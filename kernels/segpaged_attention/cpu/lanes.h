// Vectors of a chosen width through the compiler's vector extension, and the conversions of the storage types.
// Included inside an unnamed namespace by each variant, so that no two instruction sets share a function.
#pragma once
#include <stdint.h>
#include <string.h>

#define SEGPAGED_INLINE inline static __attribute__((always_inline))

template <int Width>
struct Lanes {
    typedef float F __attribute__((vector_size(Width * 4)));
    typedef int32_t I __attribute__((vector_size(Width * 4)));
    typedef uint32_t U __attribute__((vector_size(Width * 4)));
    typedef uint16_t H __attribute__((vector_size(Width * 2)));
};

template <class To, class From>
SEGPAGED_INLINE To bits(From value) {
    return __builtin_bit_cast(To, value);
}

// Unaligned access of whole vectors. Not memcpy: GCC 12 calls the library for 64 bytes.
template <class T>
struct __attribute__((packed, may_alias)) Unaligned {
    T value;
};

template <class T>
SEGPAGED_INLINE T load(const void* address) {
    return ((const Unaligned<T>*)address)->value;
}

template <class T>
SEGPAGED_INLINE void store(void* address, T value) {
    ((Unaligned<T>*)address)->value = value;
}

template <class F>
SEGPAGED_INLINE F splat(float value) {
    return value - F{};
}

// a > b ? a : b, so b where either is NaN. Spelled out where the compiler would emit a compare and a blend.
template <class F>
SEGPAGED_INLINE F maximum(F a, F b) {
#ifdef __AVX512F__
    if constexpr (sizeof(F) == 64) return (F)_mm512_max_ps((__m512)a, (__m512)b);
#endif
#ifdef __AVX__
    if constexpr (sizeof(F) == 32) return (F)_mm256_max_ps((__m256)a, (__m256)b);
#endif
    return a > b ? a : b;
}

struct Bf16 { uint16_t raw; };
struct Fp16 { uint16_t raw; };

// IEEE half to float for a whole vector: shift the fields up, rescale by 2^112, repair infinities and NaN.
template <int W>
SEGPAGED_INLINE typename Lanes<W>::F widen_half(typename Lanes<W>::H half) {
    typedef typename Lanes<W>::U U;
    typedef typename Lanes<W>::F F;
    U raw = __builtin_convertvector(half, U);
    F scaled = bits<F>((raw & 0x7fffu) << 13) * 0x1p112f;
    U result = bits<U>(scaled) | ((raw & 0x8000u) << 16);
    U special = (raw & 0x7c00u) == 0x7c00u ? (U{} + 0x7f800000u) : U{};
    return bits<F>(result | special);
}

// Float to IEEE half, round to nearest even, scalar: only output rows pass here, and only without F16C.
SEGPAGED_INLINE uint16_t narrow_half(float value) {
    uint32_t raw = bits<uint32_t>(value);
    uint32_t sign = (raw >> 16) & 0x8000u;
    raw &= 0x7fffffffu;
    if (raw > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (raw >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (raw < 0x38800000u) {
        // Adding 2^-1 x 2^-1 aligns the half's subnormal grid with the float's last bit, so the addition rounds.
        float aligned = bits<float>(raw) + 0.5f;
        return (uint16_t)(sign | (bits<uint32_t>(aligned) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((raw - 0x38000000u + 0xfffu + ((raw >> 13) & 1u)) >> 13));
}

SEGPAGED_INLINE uint16_t narrow_bf16(float value) {
    uint32_t raw = bits<uint32_t>(value);
    if ((raw & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((raw >> 16) | 0x40u);
    return (uint16_t)((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
}

template <int W>
SEGPAGED_INLINE typename Lanes<W>::F load_floats(const float* source) {
    return load<typename Lanes<W>::F>(source);
}

template <int W>
SEGPAGED_INLINE typename Lanes<W>::F load_floats(const Bf16* source) {
    typedef typename Lanes<W>::U U;
    return bits<typename Lanes<W>::F>(__builtin_convertvector(load<typename Lanes<W>::H>(source), U) << 16);
}

template <int W>
SEGPAGED_INLINE typename Lanes<W>::F load_floats(const Fp16* source) {
#ifdef __F16C__
    if constexpr (W == 8) return (typename Lanes<W>::F)_mm256_cvtph_ps(load<__m128i>(source));
#endif
#ifdef __AVX512F__
    if constexpr (W == 16) return (typename Lanes<W>::F)_mm512_cvtph_ps(load<__m256i>(source));
#endif
    return widen_half<W>(load<typename Lanes<W>::H>(source));
}

SEGPAGED_INLINE void store_rounded(float* target, float value) { *target = value; }
SEGPAGED_INLINE void store_rounded(Bf16* target, float value) { target->raw = narrow_bf16(value); }
SEGPAGED_INLINE void store_rounded(Fp16* target, float value) { target->raw = narrow_half(value); }

// In-register transpose of W vectors of W 32-bit lanes: log2(W) rounds that swap blocks of 1, 2, 4, ... lanes.
template <int W, int Step = 1>
SEGPAGED_INLINE void transpose(typename Lanes<W>::U (&row)[W]) {
    typedef typename Lanes<W>::U U;
    if constexpr (Step < W) {
        U low, high;
#pragma GCC unroll 16
        for (int lane = 0; lane < W; ++lane) {
            low[lane] = (lane & Step) ? W + lane - Step : lane;
            high[lane] = (lane & Step) ? W + lane : lane + Step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (i & Step) continue;
            U a = row[i], b = row[i + Step];
            row[i] = __builtin_shuffle(a, b, low);
            row[i + Step] = __builtin_shuffle(a, b, high);
        }
        transpose<W, Step * 2>(row);
    }
}

// Lane l of the result is lane l ^ Step.
template <int W, int Step>
SEGPAGED_INLINE typename Lanes<W>::F swap_lanes(typename Lanes<W>::F v) {
    typename Lanes<W>::I index;
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane) index[lane] = lane ^ Step;
    return __builtin_shuffle(v, index);
}

// 2^x by Cody-Waite: x = n + f, |f| <= 1/2, polynomial in f with constant term exactly 1, n added to the exponent field.
// Below -127 the result is exactly 0, so a masked score (-infinity) weighs nothing; NaN stays NaN. x <= 127 is required.
// Largest relative error for x >= -126: degree 4 3e-6, degree 6 1.2e-7 (tested). Coefficients: minimax in relative error.
template <int W, int Degree>
SEGPAGED_INLINE typename Lanes<W>::F exp2_lanes(typename Lanes<W>::F x) {
    typedef typename Lanes<W>::F F;
    typedef typename Lanes<W>::U U;
    const float magic = 0x1.8p23f;
    x = maximum(splat<F>(-127.0f), x);
    F shifted = x + magic;
    F f = x - (shifted - magic);
    F p;
    if constexpr (Degree == 4) {
        p = f * 0x1.3a02ccp-7f + 0x1.c9fc46p-5f;
        p = p * f + 0x1.ec0378p-3f;
        p = p * f + 0x1.62e12cp-1f;
    } else {
        static_assert(Degree == 6, "degree");
        p = f * 0x1.41fbbcp-13f + 0x1.5f3e54p-10f;
        p = p * f + 0x1.3b2d4cp-7f;
        p = p * f + 0x1.c6aee8p-5f;
        p = p * f + 0x1.ebfbdcp-3f;
        p = p * f + 0x1.62e430p-1f;
    }
    p = p * f + 1.0f;
    return bits<F>(bits<U>(p) + (bits<U>(shifted) << 23));
}
