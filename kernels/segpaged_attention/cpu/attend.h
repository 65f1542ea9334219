// One work item: a tile of query rows of one KV head against a run of its visible keys, with an online softmax.
//
// Per tile of keys: pack K as [panel][step][key lane] and V as [panel][step][column lane], then for each block of kRows
// query rows: scores = Q K^T in registers, mask, exponentials, weights V added to the fp32 result rows. A "step" is what
// one 32-bit lane carries along the contracted dimension: one fp32, or a pair of bf16.
#pragma once

template <class Math>
struct Scratch {
    typedef typename Math::S S;
    uint32_t *query, *key, *value, *weight, *weight_low;
    float *score, *result, *maximum, *sum;
    int32_t* position;       // [tile_keys], INT32_MAX for padding
    const S **key_row, **value_row;
    S* zero;                 // one row of zeros, the row of padding keys
    int tile_keys, rows, steps;
    int64_t bytes;

    Scratch(const SegpagedArgs& args, char* memory) {
        const int ratio = args.num_heads / args.num_kv_heads;
        steps = args.head_size / Math::kStep;
        rows = (kItemRows / ratio > 1 ? kItemRows / ratio : 1) * ratio;
        // Packed K and V take half of a 1 MiB L2 at most, a score row a fraction of L1.
        tile_keys = kTileBytes / (steps * 4) / kKeyGrain * kKeyGrain;
        tile_keys = tile_keys > kMaxTileKeys ? kMaxTileKeys : tile_keys < kKeyGrain ? kKeyGrain : tile_keys;
        char* next = memory;
        // Inner kernels for matrix tiles read and write whole blocks of rows.
        const int64_t padded = rows + Math::kRows;
        take(next, query, padded * padded_steps());
        take(next, key, (int64_t)tile_keys * padded_steps());
        take(next, value, (int64_t)tile_keys / Math::kStep * args.head_size);
        take(next, weight, (int64_t)Math::kRows * tile_keys / Math::kStep);
        take(next, weight_low, Math::kParts == 2 ? (int64_t)Math::kRows * tile_keys / Math::kStep : 0);
        take(next, score, (int64_t)Math::kRows * tile_keys);
        take(next, result, padded * args.head_size);
        take(next, maximum, padded);
        take(next, sum, padded);
        take(next, position, tile_keys);
        take(next, key_row, tile_keys);
        take(next, value_row, tile_keys);
        take(next, zero, args.head_size);
        bytes = next - memory;
    }

    // Steps of a query row and of packed K, rounded up to what the inner kernel contracts at once; the rest is zero.
    int padded_steps() const { return (steps + Math::kStepGrain - 1) / Math::kStepGrain * Math::kStepGrain; }

    static constexpr int kKeyGrain = Math::kPanel * Math::kWidth * 2;
    static constexpr int kMaxTileKeys = 512;
    static constexpr int kTileBytes = 128 * 1024;

private:
    template <class T>
    static void take(char*& next, T*& pointer, int64_t count) {
        pointer = (T*)next;
        next += (count * (int64_t)sizeof(T) + 63) / 64 * 64;
    }
};

// Pages of one (request, KV head): where the rows of a key lie.
template <class S>
struct Pages {
    const S* pool;
    const int32_t* table;
    int64_t base, page_stride, token_stride, value_offset, last_page;
    int page_size;

    Pages(const SegpagedArgs& args, const Item& item) {
        pool = (const S*)args.pool;
        base = args.base[item.head];
        page_stride = args.page_stride;
        token_stride = args.token_stride;
        value_offset = args.value_offset;
        page_size = args.page_size;
        const int64_t group = args.group[item.head];
        table = args.block_tables + (group * args.num_requests + item.request) * args.table_width;
        const int64_t extent = (page_size - 1) * token_stride + (value_offset > 0 ? value_offset : 0) + args.head_size;
        last_page = args.pool_elements < base + extent ? -1 : (args.pool_elements - base - extent) / page_stride;
    }

    // Rows and positions of keys key_begin .. key_end of the run. False at a page outside the pool, its position in `bad`.
    bool rows(const KeyRun& run, int key_begin, int key_end, const S** key, const S** value, int32_t* position,
              int* bad) const {
        for (int k = key_begin; k < key_end;) {
            const int p = k < run.sinks ? k : k + run.shift;
            const int page = table[p / page_size];
            const int slot = p % page_size;
            int count = page_size - slot;
            const int limit = (k < run.sinks && run.sinks < key_end ? run.sinks : key_end) - k;
            if (count > limit) count = limit;
            if (page < 0 || page > last_page) {
                *bad = p;
                return false;
            }
            const S* row = pool + base + page * page_stride + slot * token_stride;
            for (int i = 0; i < count; ++i, row += token_stride) {
                *key++ = row;
                *value++ = row + value_offset;
                *position++ = p + i;
            }
            k += count;
        }
        return true;
    }
};

// Touches the rows that the next tile will pack: the copy from memory then overlaps this tile's arithmetic.
template <class S>
SEGPAGED_INLINE void prefetch_row(const S* row, int head_size) {
    for (int byte = 0; byte < head_size * (int)sizeof(S); byte += 64) __builtin_prefetch((const char*)row + byte, 0, 2);
}

template <class Math>
SEGPAGED_INLINE void pack_keys(const Scratch<Math>& s, int keys) {
    constexpr int W = Math::kWidth, P = Math::kPanel;
    typedef typename Math::U U;
    const int steps = s.steps, padded = s.padded_steps();
    for (int k = 0; k < keys; k += W) {
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

template <class Math>
SEGPAGED_INLINE void pack_values(const Scratch<Math>& s, int keys, int head_size) {
    constexpr int W = Math::kWidth;
    const int vectors = head_size / W, tile_steps = s.tile_keys / Math::kStep;
    for (int begin = 0; begin < vectors;) {
        const int end = panel_end<Math>(begin, vectors);
        uint32_t* target = s.value + (int64_t)begin * W * tile_steps;
        for (int step = 0; step < keys / Math::kStep; ++step)
            for (int v = begin; v < end; ++v, target += W) store(target, Math::load_value(s.value_row, step, v * W));
        begin = end;
    }
}

template <class Math>
SEGPAGED_INLINE float lane_maximum(typename Math::F v) {
    float result = v[0];
#pragma GCC unroll 16
    for (int i = 1; i < Math::kWidth; ++i) result = result > v[i] ? result : v[i];
    return result;
}

template <class Math>
SEGPAGED_INLINE float lane_sum(typename Math::F v) {
    float result = 0;
#pragma GCC unroll 16
    for (int i = 0; i < Math::kWidth; ++i) result += v[i];
    return result;
}

// What the softmax of a block of rows needs to know.
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

template <class Math>
SEGPAGED_INLINE void mask_scores(const Scratch<Math>& s, float* score, Range range, int position, const Softmax& soft) {
    typedef typename Math::F F;
    typedef typename Lanes<Math::kWidth>::I I;
    constexpr int W = Math::kWidth;
    const int oldest = position - soft.window;
    for (int v = range.begin; v < range.end; ++v) {
        const int first = s.position[v * W], last = s.position[v * W + W - 1];
        if (last <= position && (first > oldest || last < soft.sink)) continue;
        I at = load<I>(s.position + v * W);
        I seen = (at <= position) & ((at > oldest) | (at < soft.sink));
        F kept = load<F>(score + v * W);
        store(score + v * W, seen ? kept : splat<F>(-__builtin_inff()));
    }
}

// Turns one row of scores into weights; returns what the row's earlier result must be multiplied with.
template <class Math>
SEGPAGED_INLINE float weigh_row(const Scratch<Math>& s, int local, int row, const Range* ranges, int count, float scale) {
    typedef typename Math::F F;
    constexpr int W = Math::kWidth;
    const float* score = s.score + (int64_t)local * s.tile_keys;
    uint32_t* high = s.weight + (int64_t)local * (s.tile_keys / Math::kStep);
    uint32_t* low = s.weight_low + (int64_t)local * (s.tile_keys / Math::kStep);
    F top = splat<F>(s.maximum[row]), top2 = top;
    for (int i = 0; i < count; ++i) {
        int v = ranges[i].begin;
        for (; v + 1 < ranges[i].end; v += 2) {
            top = maximum(load<F>(score + v * W), top);
            top2 = maximum(load<F>(score + v * W + W), top2);
        }
        if (v < ranges[i].end) top = maximum(load<F>(score + v * W), top);
    }
    const float highest = lane_maximum<Math>(maximum(top, top2));
    const float offset = -highest * scale;
    F sum = F{}, sum2 = F{};
    for (int i = 0; i < count; ++i) {
        int v = ranges[i].begin;
        for (; v + 1 < ranges[i].end; v += 2) {
            F first = exp2_lanes<W, Math::kDegree>(load<F>(score + v * W) * scale + offset);
            F second = exp2_lanes<W, Math::kDegree>(load<F>(score + v * W + W) * scale + offset);
            sum += first;
            sum2 += second;
            Math::put_weights(high, low, v * W, first, second);
        }
        if (v < ranges[i].end) {
            F weight = exp2_lanes<W, Math::kDegree>(load<F>(score + v * W) * scale + offset);
            sum += weight;
            Math::put_weights(high, low, v * W, weight);
        }
    }
    const float lower = (s.maximum[row] - highest) * scale;
    const float factor = lower < -126.0f ? 0.0f : exp2_lanes<4, 6>(splat<Lanes<4>::F>(lower))[0];
    s.maximum[row] = highest;
    s.sum[row] = s.sum[row] * factor + lane_sum<Math>(sum + sum2);
    return factor;
}

// The vectors of tile keys [tile_begin, tile_end) that rows at positions first .. last see: sinks and window, 0 to 2 ranges.
template <class Math>
SEGPAGED_INLINE int block_ranges(const KeyRun& run, int first, int last, int tile_begin, int tile_end, const Softmax& soft,
                                 Range (&ranges)[2]) {
    constexpr int G = Math::kWidth * Math::kChunk;
    int window_begin = first - soft.window + 1 - run.shift;
    if (window_begin < run.sinks) window_begin = run.sinks;
    int sink_end = soft.sink < last + 1 ? soft.sink : last + 1;
    const int window_end = last + 1 - run.shift;
    if (window_begin <= sink_end) {
        window_begin = 0;
        sink_end = 0;
    }
    const int bounds[2][2] = {{0, sink_end}, {window_begin, window_end}};
    int count = 0;
    for (int i = 0; i < 2; ++i) {
        int begin = bounds[i][0] > tile_begin ? bounds[i][0] - tile_begin : 0;
        int end = (bounds[i][1] < tile_end ? bounds[i][1] : tile_end) - tile_begin;
        if (begin >= end) continue;
        Range range = {begin / G * Math::kChunk, (end + G - 1) / G * Math::kChunk};
        if (count && range.begin <= ranges[0].end) {
            ranges[0].end = range.end;
        } else {
            ranges[count++] = range;
        }
    }
    return count;
}

template <class Math>
SEGPAGED_INLINE void score_block(const Scratch<Math>& s, int row, int rows, Range range) {
    constexpr int W = Math::kWidth, P = Math::kPanel;
    const int padded = s.padded_steps();
    for (int v = range.begin; v < range.end;) {
        const int lane = v % P;
        const int count = P - lane < range.end - v ? P - lane : range.end - v;
        const uint32_t* panel = s.key + (int64_t)(v / P) * padded * P * W + lane * W;
        Math::template multiply<1>(rows, count, s.query + (int64_t)row * padded, nullptr, padded, panel, P * W, padded,
                                   s.score + v * W, s.tile_keys, nullptr);
        v += count;
    }
}

template <class Math>
SEGPAGED_INLINE void accumulate_block(const Scratch<Math>& s, int row, int rows, Range range, int head_size,
                                      const float* factors) {
    constexpr int W = Math::kWidth;
    const int tile_steps = s.tile_keys / Math::kStep, vectors = head_size / W;
    const int first = range.begin * W / Math::kStep, steps = (range.end - range.begin) * W / Math::kStep;
    for (int begin = 0; begin < vectors;) {
        const int end = panel_end<Math>(begin, vectors), width = (end - begin) * W;
        const uint32_t* panel = s.value + (int64_t)begin * W * tile_steps + (int64_t)first * width;
        Math::template multiply<Math::kParts>(rows, end - begin, s.weight + first, s.weight_low + first, tile_steps, panel,
                                              width, steps, s.result + (int64_t)row * head_size + begin * W, head_size,
                                              factors);
        begin = end;
    }
}

// Stores factor * values as query row `row` of the item, in the storage type.
template <class Math>
SEGPAGED_INLINE void write_row(const SegpagedArgs& args, const Item& item, int row, const float* values, float factor) {
    typedef typename Math::S S;
    const int ratio = args.num_heads / args.num_kv_heads;
    const int64_t token = args.cu_seqlens_q[item.request] + item.token_begin + row / ratio;
    S* target = (S*)args.output + token * args.output_stride + (int64_t)(item.head * ratio + row % ratio) * args.head_size;
    Math::narrow_row(target, values, factor, args.head_size);
}

template <class Math>
static bool attend(SegpagedArgs& args, const Item& item, char* memory, float* partials) {
    typedef typename Math::S S;
    typedef typename Math::U U;
    constexpr int W = Math::kWidth, G = W * Math::kChunk;
    const Scratch<Math> s(args, memory);
    const int head_size = args.head_size, ratio = args.num_heads / args.num_kv_heads;
    const int rows = (item.token_end - item.token_begin) * ratio;
    const int first_row = args.cu_seqlens_q[item.request];
    const int context = args.seq_lens[item.request] - (args.cu_seqlens_q[item.request + 1] - first_row);
    const int first_position = context + item.token_begin, last_position = context + item.token_end - 1;
    const float log2e = 1.44269504f;
    Softmax soft = {args.softmax_scale * log2e, 0, 0, args.window[item.head], args.sink[item.head]};
    if (args.soft_cap > 0) soft = {log2e, args.soft_cap, 2 * soft.scale / args.soft_cap, soft.window, soft.sink};
    const KeyRun run = key_run(first_position, last_position, soft.window, soft.sink);
    const Pages<S> pages(args, item);

    for (int i = 0; i < head_size; ++i) s.zero[i] = S{};
    const int padded = s.padded_steps();
    for (int r = 0; r < rows; ++r) {
        const int64_t token = first_row + item.token_begin + r / ratio;
        const S* source = (const S*)args.query + token * args.query_stride + (int64_t)(item.head * ratio + r % ratio) * head_size;
        uint32_t* target = s.query + (int64_t)r * padded;
        for (int step = 0; step < padded; ++step) target[step] = 0;
        for (int step = 0; step < s.steps; step += W) {
            U lanes = Math::load_row(source, step, s.steps);
            memcpy(target + step, &lanes, (s.steps - step < W ? s.steps - step : W) * 4);
        }
        s.maximum[r] = -1e30f;
        s.sum[r] = 0;
    }
    for (int64_t i = 0; i < (int64_t)rows * head_size; ++i) s.result[i] = 0;

    Math::begin();
    bool good = true;
    for (int tile_begin = item.key_begin; tile_begin < item.key_end; tile_begin += s.tile_keys) {
        const int tile_end = tile_begin + s.tile_keys < item.key_end ? tile_begin + s.tile_keys : item.key_end;
        const int keys = (tile_end - tile_begin + G - 1) / G * G;
        int bad = 0;
        if (!pages.rows(run, tile_begin, tile_end, s.key_row, s.value_row, s.position, &bad)) {
            args.bad_request = item.request;
            args.bad_head = item.head;
            args.bad_position = bad;
            args.bad_page = pages.table[bad / args.page_size];
            good = false;
            break;
        }
        for (int k = tile_end - tile_begin; k < keys; ++k) {
            s.key_row[k] = s.value_row[k] = s.zero;
            s.position[k] = INT32_MAX;
        }
        pack_keys(s, keys);
        pack_values(s, keys, head_size);
        for (int row = 0; row < rows; row += Math::kRows) {
            const int count = rows - row < Math::kRows ? rows - row : Math::kRows;
            const int first = first_position + row / ratio, last = first_position + (row + count - 1) / ratio;
            Range ranges[2];
            const int num_ranges = block_ranges<Math>(run, first, last, tile_begin, tile_end, soft, ranges);
            if (!num_ranges) continue;
            float factors[Math::kRows];
            for (int i = 0; i < num_ranges; ++i) score_block(s, row, count, ranges[i]);
            for (int r = 0; r < count; ++r) {
                float* score = s.score + (int64_t)r * s.tile_keys;
                for (int i = 0; i < num_ranges; ++i) {
                    if (soft.cap > 0) cap_scores<Math>(score, ranges[i], soft);
                    mask_scores(s, score, ranges[i], first_position + (row + r) / ratio, soft);
                }
                factors[r] = weigh_row(s, r, row + r, ranges, num_ranges, soft.scale);
            }
            for (int i = 0; i < num_ranges; ++i) {
                accumulate_block(s, row, count, ranges[i], head_size, factors);
                for (int r = 0; r < count; ++r) factors[r] = 1;
            }
        }
    }
    Math::end();
    if (!good) return false;

    if (item.partial >= 0) {
        float* target = partials + item.partial;
        memcpy(target, s.result, (size_t)rows * head_size * sizeof(float));
        for (int r = 0; r < rows; ++r) {
            target[(int64_t)rows * head_size + r] = s.maximum[r] * soft.scale;
            target[(int64_t)rows * (head_size + 1) + r] = s.sum[r];
        }
        return true;
    }
    for (int r = 0; r < rows; ++r)
        write_row<Math>(args, item, r, s.result + (int64_t)r * head_size, 1.0f / s.sum[r]);
    return true;
}

template <class Math>
static int64_t scratch_bytes(const SegpagedArgs& args) {
    return Scratch<Math>(args, nullptr).bytes;
}
