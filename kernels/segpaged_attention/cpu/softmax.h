// Online softmax of a block of query rows over one tile of scores.
#pragma once

// What the softmax needs to know of a head.
struct Softmax {
    float scale;      // from score to log2 domain, after the soft cap
    float cap;        // 0: none
    float cap_scale;  // softmax_scale / cap * 2 log2(e): the argument of the tanh's exponential
    int window, sink;
};

// One range of a tile's vectors that some row of a block sees.
struct Range {
    int begin, end;
};

// Horizontal reductions by halving: log2(W) shuffles.
template <int W, int Step = W / 2>
SEGPAGED_INLINE float lane_maximum(typename Lanes<W>::F v) {
    if constexpr (Step == 0) return v[0];
    else return lane_maximum<W, Step / 2>(maximum(v, swap_lanes<W, Step>(v)));
}

template <int W, int Step = W / 2>
SEGPAGED_INLINE float lane_sum(typename Lanes<W>::F v) {
    if constexpr (Step == 0) return v[0];
    else return lane_sum<W, Step / 2>(v + swap_lanes<W, Step>(v));
}

template <class Math>
SEGPAGED_INLINE void cap_scores(float* score, Range range, const Softmax& soft) {
    typedef typename Math::F F;
    constexpr int W = Math::kWidth;
    for (int v = range.begin; v < range.end; ++v) {
        // tanh(t) = 1 - 2 / (1 + e^2t)
        F power = load<F>(score + v * W) * soft.cap_scale;
        power = power > 126.0f ? splat<F>(126.0f) : power;
        F capped = soft.cap - 2.0f * soft.cap / (1.0f + exp2_lanes<W, 6>(power));
        store(score + v * W, capped);
    }
}

// True when rows at positions first .. last see every key of the range.
template <class Math>
SEGPAGED_INLINE bool all_seen(const int32_t* position, Range range, int first, int last, const Softmax& soft) {
    const int oldest = position[range.begin * Math::kWidth], newest = position[range.end * Math::kWidth - 1];
    return newest <= first && (oldest > last - soft.window || newest < soft.sink);
}

template <class Math>
SEGPAGED_INLINE void mask_scores(const int32_t* position, float* score, Range range, int row_position, const Softmax& soft) {
    typedef typename Math::F F;
    typedef typename Lanes<Math::kWidth>::I I;
    constexpr int W = Math::kWidth;
    const int oldest = row_position - soft.window;
    for (int v = range.begin; v < range.end; ++v) {
        I at = load<I>(position + v * W);
        I seen = (at <= row_position) & ((at > oldest) | (at < soft.sink));
        F kept = load<F>(score + v * W);
        store(score + v * W, seen ? kept : splat<F>(-__builtin_inff()));
    }
}

template <class Math>
SEGPAGED_INLINE typename Math::F top_lanes(const float* score, const Range* ranges, int count, float floor) {
    typedef typename Math::F F;
    constexpr int W = Math::kWidth;
    F top = splat<F>(floor), top2 = top;
    for (int i = 0; i < count; ++i) {
        int v = ranges[i].begin;
        for (; v + 1 < ranges[i].end; v += 2) {
            top = maximum(load<F>(score + v * W), top);
            top2 = maximum(load<F>(score + v * W + W), top2);
        }
        if (v < ranges[i].end) top = maximum(load<F>(score + v * W), top);
    }
    return maximum(top, top2);
}

// Writes the weights 2^(scale score + offset) of one row; returns their sum in lanes.
template <class Math>
SEGPAGED_INLINE typename Math::F weigh(const float* score, uint32_t* high, uint32_t* low, const Range* ranges, int count,
                                       float scale, float offset) {
    typedef typename Math::F F;
    constexpr int W = Math::kWidth, Degree = Math::kDegree;
    F sum = F{}, sum2 = F{};
    for (int i = 0; i < count; ++i) {
        int v = ranges[i].begin;
        for (; v + 1 < ranges[i].end; v += 2) {
            F first = exp2_lanes<W, Degree>(load<F>(score + v * W) * scale + offset);
            F second = exp2_lanes<W, Degree>(load<F>(score + v * W + W) * scale + offset);
            sum += first;
            sum2 += second;
            Math::put_weights(high, low, v * W, first, second);
        }
        if (v < ranges[i].end) {
            F weight = exp2_lanes<W, Degree>(load<F>(score + v * W) * scale + offset);
            sum += weight;
            Math::put_weights(high, low, v * W, weight);
        }
    }
    return sum + sum2;
}

// Scores of rows row .. row + rows of the item to weights; factors[r] is what the row's earlier result is to be scaled by.
template <class Math>
SEGPAGED_INLINE void soften_block(const Scratch<Math>& s, int row, int rows, int ratio, int first_position,
                                  const Range* ranges, int count, const Softmax& soft, float* factors) {
    constexpr int W = Math::kWidth;
    const int64_t weight_stride = s.tile_keys / Math::kStep;
    const int first = first_position + row / ratio, last = first_position + (row + rows - 1) / ratio;
    for (int i = 0; i < count; ++i) {
        if (soft.cap > 0)
            for (int r = 0; r < rows; ++r) cap_scores<Math>(s.score + (int64_t)r * s.tile_keys, ranges[i], soft);
        if (all_seen<Math>(s.position, ranges[i], first, last, soft)) continue;
        for (int r = 0; r < rows; ++r)
            mask_scores<Math>(s.position, s.score + (int64_t)r * s.tile_keys, ranges[i],
                              first_position + (row + r) / ratio, soft);
    }
    // All maxima first: the horizontal reductions of the rows then overlap.
    float highest[Math::kRows];
    for (int r = 0; r < rows; ++r)
        highest[r] = lane_maximum<W>(
            top_lanes<Math>(s.score + (int64_t)r * s.tile_keys, ranges, count, s.maximum[row + r]));
    for (int r = 0; r < rows; ++r) {
        const float lower = (s.maximum[row + r] - highest[r]) * soft.scale;
        factors[r] = lower < -126.0f ? 0.0f : exp2_lanes<4, 6>(splat<Lanes<4>::F>(lower))[0];
        s.maximum[row + r] = highest[r];
        const typename Math::F sum =
            weigh<Math>(s.score + (int64_t)r * s.tile_keys, s.weight + r * weight_stride, s.weight_low + r * weight_stride,
                        ranges, count, soft.scale, -highest[r] * soft.scale);
        s.sum[row + r] = s.sum[row + r] * factors[r] + lane_sum<W>(sum);
    }
}
