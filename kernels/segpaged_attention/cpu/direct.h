// The few-rows path (decode): keys and values are read once, straight from their pages, and never packed.
#pragma once

// Lane l of the result: a[l] + a[l ^ Step] where l lacks bit Step, else b[l] + b[l ^ Step].
template <int W, int Step>
SEGPAGED_INLINE typename Lanes<W>::F fold(typename Lanes<W>::F a, typename Lanes<W>::F b) {
    typedef typename Lanes<W>::I I;
    I straight, crossed;
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane) {
        straight[lane] = (lane & Step) ? W + lane : lane;
        crossed[lane] = (lane & Step) ? W + (lane ^ Step) : lane ^ Step;
    }
    return __builtin_shuffle(a, b, straight) + __builtin_shuffle(a, b, crossed);
}

// Lane l of the result: the sum over the lanes of part[l]. `Count` vectors whose lanes were folded below Step.
template <int W, int Count, int Step = 1>
SEGPAGED_INLINE typename Lanes<W>::F fold_all(typename Lanes<W>::F (&part)[Count]) {
    if constexpr (Count == 1) {
        return part[0];
    } else {
        typename Lanes<W>::F half[Count / 2];
#pragma GCC unroll 8
        for (int i = 0; i < Count / 2; ++i) half[i] = fold<W, Step>(part[2 * i], part[2 * i + 1]);
        return fold_all<W, Count / 2, Step * 2>(half);
    }
}

// Scores of `Rows` query rows against W keys: vectors run along the head, four keys at a time, then lanes are folded.
template <class Math, int Rows>
SEGPAGED_INLINE void direct_scores_block(const Scratch<Math>& s, int row, int vector, float* score, bool fetch) {
    typedef typename Math::F F;
    typedef typename Math::U U;
    constexpr int W = Math::kWidth, Keys = 4;
    const typename Math::S* const* keys = s.key_row + vector * W;
    const uint32_t* query = s.query + (int64_t)row * s.query_stride;
    F folded[Rows][W / Keys];
#pragma GCC unroll 4
    for (int group = 0; group < W / Keys; ++group) {
        if (fetch) NextTile<typename Math::S>::fetch(s.next, (vector * W) / Keys + group);
        F sum[Rows][Keys];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int k = 0; k < Keys; ++k) sum[r][k] = F{};
        for (int step = 0; step < s.steps; step += W) {
            U key[Keys];
#pragma GCC unroll 4
            for (int k = 0; k < Keys; ++k) key[k] = Math::load_row(keys[group * Keys + k], step, s.steps);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                U lanes = load<U>(query + r * s.query_stride + step);
#pragma GCC unroll 4
                for (int k = 0; k < Keys; ++k) sum[r][k] = Math::dot_lanes(sum[r][k], key[k], lanes);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            F half[2] = {fold<W, 1>(sum[r][0], sum[r][1]), fold<W, 1>(sum[r][2], sum[r][3])};
            folded[r][group] = fold<W, 2>(half[0], half[1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
        store(score + (int64_t)r * s.tile_keys, fold_all<W, W / Keys, Keys>(folded[r]));
}

// Scores of rows row .. row + rows against the keys of a range; meanwhile the first half of the next tile is fetched.
template <class Math>
static __attribute__((noinline)) void direct_scores(const Scratch<Math>& s, int row, int rows, Range range) {
    constexpr int W = Math::kWidth;
    for (int v = range.begin; v < range.end; ++v) {
        for (int r = 0; r < rows;) {
            float* score = s.score + (int64_t)r * s.tile_keys + v * W;
            if (rows - r >= 4) {
                direct_scores_block<Math, 4>(s, row + r, v, score, r == 0);
                r += 4;
            } else if (rows - r == 3) {
                direct_scores_block<Math, 3>(s, row + r, v, score, r == 0);
                r += 3;
            } else if (rows - r == 2) {
                direct_scores_block<Math, 2>(s, row + r, v, score, r == 0);
                r += 2;
            } else {
                direct_scores_block<Math, 1>(s, row + r, v, score, r == 0);
                r += 1;
            }
        }
    }
}

// Adds weights x V for rows row .. row + rows over the keys of a range; meanwhile the rest of the next tile is fetched.
template <class Math>
SEGPAGED_INLINE void direct_accumulate(const Scratch<Math>& s, int row, int rows, Range range, int head_size,
                                       const float* factors) {
    typedef typename Math::Vectors Vectors;
    constexpr int W = Math::kWidth;
    const int tile_steps = s.tile_keys / Math::kStep, vectors = head_size / W;
    const int first = range.begin * W / Math::kStep, steps = (range.end - range.begin) * W / Math::kStep;
    const int panels = (vectors + Vectors::kPanel - 1) / Vectors::kPanel;
    const int passes = panels * ((rows + Vectors::kRows - 1) / Vectors::kRows);
    // Every pass over the tile fetches an equal share, so that memory never waits.
    int unit = s.next.half / 2;
    for (int r = 0; r < rows; r += Vectors::kRows) {
        const int count = rows - r < Vectors::kRows ? rows - r : Vectors::kRows;
        for (int begin = 0; begin < vectors;) {
            const int end = panel_end<Vectors>(begin, vectors);
            const ValueRows<Vectors> columns = {s.value_row, begin * W, first, &s.next, unit, 4 * passes};
            unit += s.next.half / 2 / passes;
            const int64_t weights = (int64_t)r * tile_steps + first;
            multiply_registers<Vectors, Math::kParts>(count, end - begin, s.weight + weights, s.weight_low + weights,
                                                      tile_steps, columns, steps,
                                                      s.result + (int64_t)(row + r) * head_size + begin * W, head_size,
                                                      factors + r);
            begin = end;
        }
    }
}
