// One work item: a tile of query rows of one KV head against a run of its visible keys, with an online softmax.
//
// Per tile of keys: pack K as [panel][step][key lane] and V as [panel][step][column lane], then for each block of kRows
// query rows: scores = Q K^T in registers, mask, exponentials, weights V added to the fp32 result rows. A "step" is what
// one 32-bit lane carries along the contracted dimension: one fp32, or a pair of bf16.
#pragma once

#include "pack.h"
#include "softmax.h"
#include "direct.h"

// Keys of a tile on the few-rows path: enough to spread the softmax, few enough that two tiles stay in L2.
constexpr int kDirectTileKeys = 64;

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
        Math::template multiply<1>(rows, count, s.query + (int64_t)row * s.query_stride, nullptr, s.query_stride, panel, P * W, padded,
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
static bool attend(SegpagedArgs& args, const Item& item, const Item* following, char* memory, float* partials) {
    typedef typename Math::S S;
    typedef typename Math::U U;
    constexpr int W = Math::kWidth, G = W * Math::kChunk;
    Scratch<Math> s(args, memory);
    const int head_size = args.head_size, ratio = args.num_heads / args.num_kv_heads;
    const int rows = (item.token_end - item.token_begin) * ratio;
    const int first_row = args.cu_seqlens_q[item.request];
    const int context = args.seq_lens[item.request] - (args.cu_seqlens_q[item.request + 1] - first_row);
    const int first_position = context + item.token_begin;
    const float log2e = 1.44269504f;
    Softmax soft = {args.softmax_scale * log2e, 0, 0, args.window[item.head], args.sink[item.head]};
    if (args.soft_cap > 0) soft = {log2e, args.soft_cap, 2 * soft.scale / args.soft_cap, soft.window, soft.sink};
    const KeyRun run = key_run_of(args, item);
    const Pages<S> pages(args, item);

    for (int i = 0; i < head_size; ++i) s.zero[i] = S{};
    for (int r = 0; r < rows; ++r) {
        const int64_t token = first_row + item.token_begin + r / ratio;
        const S* source = (const S*)args.query + token * args.query_stride + (int64_t)(item.head * ratio + r % ratio) * head_size;
        for (int step = 0; step < s.query_stride; step += W)
            store(s.query + (int64_t)r * s.query_stride + step, step < s.steps ? Math::load_row(source, step, s.steps) : U{});
        s.maximum[r] = -1e30f;
        s.sum[r] = 0;
    }
    for (int64_t i = 0; i < (int64_t)rows * head_size; ++i) s.result[i] = 0;

    const bool direct = rows <= Math::kDirectRows;
    const int tile = direct && s.tile_keys > kDirectTileKeys ? kDirectTileKeys : s.tile_keys;
    s.next.half = tile / 2;
    s.next.row_bytes = head_size * (int)sizeof(S);
    // Finds the rows of the tile at `begin`, which the arithmetic of the tile before it then has time to fetch.
    auto look_ahead = [&](int begin) {
        s.next.keys = begin + tile < item.key_end ? tile : item.key_end - begin;
        int bad = 0;
        if (s.next.keys <= 0) {
            s.next.keys = 0;
            if (!following || !direct) return true;
            // A bad page of the following item is that item's to report.
            const int keys = following->key_end - following->key_begin < tile ? following->key_end - following->key_begin : tile;
            if (Pages<S>(args, *following).rows(key_run_of(args, *following), following->key_begin,
                                                following->key_begin + keys, s.next.key_row, s.next.value_row,
                                                s.next.position, &bad))
                s.next.keys = keys;
            return true;
        }
        if (pages.rows(run, begin, begin + s.next.keys, s.next.key_row, s.next.value_row, s.next.position, &bad)) return true;
        args.bad_request = item.request;
        args.bad_head = item.head;
        args.bad_position = bad;
        args.bad_page = pages.table[bad / args.page_size];
        return false;
    };
    if (!look_ahead(item.key_begin)) return false;
    // Of the first tile nothing may have been fetched: ask for all of it at once.
    if (direct)
        for (int unit = 0; unit < s.next.half; ++unit) NextTile<S>::fetch(s.next, unit);
    Math::begin();
    bool good = true;
    for (int tile_begin = item.key_begin; good && tile_begin < item.key_end; tile_begin += tile) {
        const int real_keys = s.next.keys, tile_end = tile_begin + real_keys, keys = (real_keys + G - 1) / G * G;
        s.turn_to_next_tile();
        good = look_ahead(tile_begin + tile);
        for (int k = real_keys; k < keys; ++k) {
            s.key_row[k] = s.value_row[k] = s.zero;
            s.position[k] = INT32_MAX;
        }
        if (!direct) {
            pack_keys(s, keys);
            pack_values(s, keys, head_size);
        }
        for (int row = 0; row < rows; row += Math::kRows) {
            const int count = rows - row < Math::kRows ? rows - row : Math::kRows;
            const int first = first_position + row / ratio, last = first_position + (row + count - 1) / ratio;
            Range ranges[2];
            const int num_ranges = block_ranges<Math>(run, first, last, tile_begin, tile_end, soft, ranges);
            if (!num_ranges) continue;
            for (int i = 0; i < num_ranges; ++i) {
                if (direct) direct_scores(s, row, count, ranges[i]);
                else score_block(s, row, count, ranges[i]);
            }
            float factors[Math::kRows];
            soften_block(s, row, count, ratio, first_position, ranges, num_ranges, soft, factors);
            for (int i = 0; i < num_ranges; ++i) {
                if (direct) direct_accumulate(s, row, count, ranges[i], head_size, factors);
                else accumulate_block(s, row, count, ranges[i], head_size, factors);
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
