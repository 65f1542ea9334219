// The inner kernel: C [rows x vectors] = A [rows x steps] B [steps x vectors] (+ factors C), all of C in registers.
#pragma once

// Where the columns of B come from: a packed tile ...
template <class Math>
struct PackedColumns {
    const uint32_t* data;
    int stride;

    template <int Vectors>
    SEGPAGED_INLINE void load_step(const PackedColumns& from, int step, typename Math::U (&column)[Vectors]) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
            column[v] = load<typename Math::U>(from.data + (int64_t)step * from.stride + v * Math::kWidth);
    }
};

// ... or rows of V where they lie, from key step `first` on; meanwhile rows of the next tile are fetched.
template <class Math>
struct ValueRows {
    const typename Math::S* const* rows;
    int begin;  // column
    int first;
    const NextTile<typename Math::S>* next;
    int unit;   // of the next tile, fetched with key 0
    int every;  // keys from one unit to the next

    template <int Vectors>
    SEGPAGED_INLINE void load_step(const ValueRows& from, int step, typename Math::U (&column)[Vectors]) {
        const int key = (from.first + step) * Math::kStep;
        if (key % from.every == 0) NextTile<typename Math::S>::fetch(*from.next, from.unit + key / from.every);
        Math::template load_values<Vectors>(from.rows, from.first + step, from.begin, column);
    }
};

template <class Math, int Parts, int Rows, int Vectors, class Columns>
static __attribute__((noinline)) void multiply_block(const uint32_t* high, const uint32_t* low, int lda, Columns columns,
                                                     int steps, float* c, int ldc, const float* factors) {
    typedef typename Math::F F;
    typedef typename Math::U U;
    constexpr int W = Math::kWidth;
    F sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
            sum[r][v] = factors ? load<F>(c + r * ldc + v * W) * factors[r] : F{};
    }
    for (int step = 0; step < steps; ++step) {
        U column[Vectors];
        Columns::template load_step<Vectors>(columns, step, column);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            uint32_t a = high[r * lda + step];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[r][v] = Math::dot(sum[r][v], column[v], a);
            if constexpr (Parts == 2) {
                uint32_t rest = low[r * lda + step];
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) sum[r][v] = Math::dot(sum[r][v], column[v], rest);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * W, sum[r][v]);
    }
}

template <class Math, int Parts, int Rows, class Columns>
SEGPAGED_INLINE void multiply_vectors(int vectors, const uint32_t* high, const uint32_t* low, int lda,
                                      Columns columns, int steps, float* c, int ldc, const float* factors) {
    switch (vectors) {
        case 1: return multiply_block<Math, Parts, Rows, 1>(high, low, lda, columns, steps, c, ldc, factors);
        case 2: return multiply_block<Math, Parts, Rows, 2>(high, low, lda, columns, steps, c, ldc, factors);
        case 3:
            if constexpr (Math::kPanel >= 3)
                return multiply_block<Math, Parts, Rows, 3>(high, low, lda, columns, steps, c, ldc, factors);
            break;
        case 4:
            if constexpr (Math::kPanel >= 4)
                return multiply_block<Math, Parts, Rows, 4>(high, low, lda, columns, steps, c, ldc, factors);
            break;
    }
    __builtin_unreachable();
}

// rows <= Math::kRows, vectors <= Math::kPanel; factors null: C is overwritten, never read.
template <class Math, int Parts, class Columns>
SEGPAGED_INLINE void multiply_registers(int rows, int vectors, const uint32_t* high, const uint32_t* low, int lda,
                                        Columns columns, int steps, float* c, int ldc, const float* factors) {
    switch (rows) {
        case 1: return multiply_vectors<Math, Parts, 1>(vectors, high, low, lda, columns, steps, c, ldc, factors);
        case 2: return multiply_vectors<Math, Parts, 2>(vectors, high, low, lda, columns, steps, c, ldc, factors);
        case 3: return multiply_vectors<Math, Parts, 3>(vectors, high, low, lda, columns, steps, c, ldc, factors);
        case 4: return multiply_vectors<Math, Parts, 4>(vectors, high, low, lda, columns, steps, c, ldc, factors);
        case 5: return multiply_vectors<Math, Parts, 5>(vectors, high, low, lda, columns, steps, c, ldc, factors);
        case 6: return multiply_vectors<Math, Parts, 6>(vectors, high, low, lda, columns, steps, c, ldc, factors);
    }
    __builtin_unreachable();
}
