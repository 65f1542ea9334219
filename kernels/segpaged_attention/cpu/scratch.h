// What one thread works on: packed tiles, scores, weights and results; and where the rows of a head's keys lie.
#pragma once

// The tile after this one: the rows of its keys are known, so memory can deliver them while this tile is computed.
template <class S>
struct NextTile {
    const S **key_row, **value_row;
    int32_t* position;
    int keys = 0;
    int half = 0;       // keys of a full tile / 2
    int row_bytes = 0;

    // Asks for the rows of keys `unit` and `unit + half`. Two streams line by line keep more of the processor's own
    // prefetchers busy than one; few lines at a time, because a core has room for some twenty outstanding misses.
    SEGPAGED_INLINE void fetch(const NextTile& tile, int unit) {
        const int first = unit < tile.keys ? unit : -1, second = unit + tile.half < tile.keys ? unit + tile.half : first;
        if (first < 0) return;
        fetch_lines(tile.key_row[first], tile.key_row[second], tile.row_bytes);
        fetch_lines(tile.value_row[first], tile.value_row[second], tile.row_bytes);
    }

    SEGPAGED_INLINE void fetch_lines(const S* first, const S* second, int bytes) {
        for (int byte = 0; byte < bytes; byte += 64) {
            __builtin_prefetch((const char*)first + byte, 0, 2);
            __builtin_prefetch((const char*)second + byte, 0, 2);
        }
    }
};

template <class Math>
struct Scratch {
    typedef typename Math::S S;
    uint32_t *query, *key, *value, *weight, *weight_low;
    float *score, *result, *maximum, *sum;
    int32_t* position;       // [tile_keys], INT32_MAX for padding
    const S **key_row, **value_row;
    NextTile<S> next;
    S* zero;                 // one row of zeros, the row of padding keys
    int tile_keys, rows, steps, query_stride;
    int64_t bytes;

    Scratch(const SegpagedArgs& args, char* memory) {
        const int ratio = args.num_heads / args.num_kv_heads;
        steps = args.head_size / Math::kStep;
        rows = (kItemRows / ratio > 1 ? kItemRows / ratio : 1) * ratio;
        // Packed K and V take half of a 1 MiB L2 at most, a score row a fraction of L1.
        tile_keys = kTileBytes / (steps * 4) / kKeyGrain * kKeyGrain;
        tile_keys = tile_keys > kMaxTileKeys ? kMaxTileKeys : tile_keys < kKeyGrain ? kKeyGrain : tile_keys;
        int64_t end = 0;
        // Inner kernels for matrix tiles read and write whole blocks of rows.
        const int64_t padded = rows + Math::kRows;
        query_stride = (padded_steps() + Math::kWidth - 1) / Math::kWidth * Math::kWidth;
        take(memory, end, query, padded * query_stride);
        take(memory, end, key, (int64_t)tile_keys * padded_steps());
        take(memory, end, value, (int64_t)tile_keys / Math::kStep * args.head_size);
        take(memory, end, weight, (int64_t)Math::kRows * tile_keys / Math::kStep);
        take(memory, end, weight_low, Math::kParts == 2 ? (int64_t)Math::kRows * tile_keys / Math::kStep : 0);
        take(memory, end, score, (int64_t)Math::kRows * tile_keys);
        take(memory, end, result, padded * args.head_size);
        take(memory, end, maximum, padded);
        take(memory, end, sum, padded);
        take(memory, end, position, tile_keys);
        take(memory, end, key_row, tile_keys);
        take(memory, end, value_row, tile_keys);
        take(memory, end, next.position, tile_keys);
        take(memory, end, next.key_row, tile_keys);
        take(memory, end, next.value_row, tile_keys);
        take(memory, end, zero, args.head_size);
        bytes = end;
    }

    // Steps of a query row and of packed K, rounded up to what the inner kernel contracts at once; the rest is zero.
    int padded_steps() const { return (steps + Math::kStepGrain - 1) / Math::kStepGrain * Math::kStepGrain; }

    void turn_to_next_tile() {
        swap(position, next.position);
        swap(key_row, next.key_row);
        swap(value_row, next.value_row);
    }

    static constexpr int kKeyGrain = Math::kPanel * Math::kWidth * 2;
    static constexpr int kMaxTileKeys = 512;
    static constexpr int kTileBytes = 128 * 1024;

private:
    template <class T>
    static void swap(T*& a, T*& b) {
        T* kept = a;
        a = b;
        b = kept;
    }

    template <class T>
    static void take(char* memory, int64_t& end, T*& pointer, int64_t count) {
        pointer = memory ? (T*)(memory + end) : nullptr;
        end += (count * (int64_t)sizeof(T) + 63) / 64 * 64;
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

