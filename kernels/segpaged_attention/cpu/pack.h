// Packs a tile of keys for the inner kernel: K as [panel][step][key lane], V as [panel][step][column lane].
#pragma once

template <class Math>
static __attribute__((noinline)) void pack_keys(const Scratch<Math>& s, int keys) {
    constexpr int W = Math::kWidth, P = Math::kPanel;
    typedef typename Math::U U;
    const int steps = s.steps, padded = s.padded_steps();
    for (int k = 0; k < keys; k += W) {
        for (int unit = k / 2; unit < (k + W) / 2; ++unit) NextTile<typename Math::S>::fetch(s.next, unit);
        uint32_t* panel = s.key + (int64_t)(k / (P * W)) * padded * P * W + k % (P * W);
        for (int step = 0; step < steps; step += W) {
            U block[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) block[i] = Math::load_row(s.key_row[k + i], step, steps);
            transpose<W>(block);
            const int count = steps - step < W ? steps - step : W;
            if (count == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) store(panel + (int64_t)(step + i) * P * W, block[i]);
            } else {
                for (int i = 0; i < count; ++i) store(panel + (int64_t)(step + i) * P * W, block[i]);
            }
        }
        for (int step = steps; step < padded; ++step) store(panel + (int64_t)step * P * W, U{});
    }
}

// Columns of V are cut into panels of nearly equal width, at most kPanel vectors each.
template <class Math>
SEGPAGED_INLINE int panel_end(int begin, int vectors) {
    const int panels = (vectors - begin + Math::kPanel - 1) / Math::kPanel;
    return begin + (vectors - begin + panels - 1) / panels;
}

template <class Math, int Count>
SEGPAGED_INLINE void pack_panel(const Scratch<Math>& s, int steps, int begin, uint32_t* target) {
    constexpr int W = Math::kWidth;
    for (int step = 0; step < steps; ++step) {
        typename Math::U column[Count];
        Math::template load_values<Count>(s.value_row, step, begin, column);
#pragma GCC unroll 8
        for (int v = 0; v < Count; ++v, target += W) store(target, column[v]);
    }
}

template <class Math>
static __attribute__((noinline)) void pack_values(const Scratch<Math>& s, int keys, int head_size) {
    constexpr int W = Math::kWidth;
    const int vectors = head_size / W, tile_steps = s.tile_keys / Math::kStep, steps = keys / Math::kStep;
    for (int begin = 0; begin < vectors;) {
        const int end = panel_end<Math>(begin, vectors);
        uint32_t* target = s.value + (int64_t)begin * W * tile_steps;
        switch (end - begin) {
            case 1: pack_panel<Math, 1>(s, steps, begin * W, target); break;
            case 2: pack_panel<Math, 2>(s, steps, begin * W, target); break;
            case 3: pack_panel<Math, 3>(s, steps, begin * W, target); break;
            default: pack_panel<Math, 4>(s, steps, begin * W, target); break;
        }
        begin = end;
    }
}
