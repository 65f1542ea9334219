// Random batches through every variant under sanitizers, checked against a plain double-precision loop.
// Usage: fuzz_attention SECONDS SEED. Every array is exactly as large as the contract says, so a stray read is an error.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <random>
#include <vector>

#include "abi.h"
#include "kv_write.h"

namespace {

std::mt19937 generator;

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float normal() { return std::normal_distribution<float>()(generator); }

uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float from_bf16(uint16_t raw) {
    uint32_t bits = static_cast<uint32_t>(raw) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

uint16_t to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t raw;
    memcpy(&raw, &half, 2);
    return raw;
}

float from_half(uint16_t raw) {
    _Float16 half;
    memcpy(&half, &raw, 2);
    return static_cast<float>(half);
}

// A tensor of any storage type on the heap, without slack.
struct Tensor {
    int dtype;
    std::vector<uint16_t> halves;
    std::vector<float> floats;

    Tensor(int type, size_t size, float fill) : dtype(type) {
        if (dtype == SEGPAGED_FP32) floats.assign(size, fill);
        else halves.assign(size, encode(fill));
        halves.shrink_to_fit();
        floats.shrink_to_fit();
    }
    uint16_t encode(float value) const {
        if (isnan(value)) return dtype == SEGPAGED_BF16 ? 0x7fc0 : 0x7e00;
        return dtype == SEGPAGED_BF16 ? to_bf16(value) : to_half(value);
    }
    void set(size_t i, float value) {
        if (dtype == SEGPAGED_FP32) floats[i] = value;
        else halves[i] = encode(value);
    }
    float get(size_t i) const {
        if (dtype == SEGPAGED_FP32) return floats[i];
        return dtype == SEGPAGED_BF16 ? from_bf16(halves[i]) : from_half(halves[i]);
    }
    void* data() { return dtype == SEGPAGED_FP32 ? static_cast<void*>(floats.data()) : halves.data(); }
};

struct Lengths {
    std::vector<int32_t> starts{0}, total;
};

bool visible(int i, int j, int window, int sink) { return j <= i && (static_cast<int64_t>(i) - j < window || j < sink); }

void fail(unsigned seed, const char* what) {
    printf("seed %u: %s\n", seed, what);
    exit(1);
}

void fuzz_attention(unsigned seed) {
    generator.seed(seed);
    const int sizes[] = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256}, ratios[] = {1, 2, 3, 4, 8, 9};
    const int dtype = draw(0, 2), size = sizes[draw(0, 9)], heads = draw(1, 3), ratio = ratios[draw(0, 5)];
    const int requests = draw(1, 5), page_size = 16 * draw(1, 4), groups = draw(1, heads), longest = draw(1, 700);
    Lengths lengths;
    for (int r = 0; r < requests; ++r) {
        const int rows = draw(0, 3) == 0 ? draw(0, 90) : draw(0, 3);
        lengths.starts.push_back(lengths.starts.back() + rows);
        lengths.total.push_back(rows + draw(0, longest));
    }
    const int tokens = lengths.starts.back(), longest_total = *std::max_element(lengths.total.begin(), lengths.total.end());
    const int width = std::max(1, (longest_total + page_size - 1) / page_size), pages = groups * requests * width;
    std::vector<int32_t> group(heads), window(heads), sink(heads), table(pages);
    std::vector<int64_t> base(heads);
    const int64_t page_elements = static_cast<int64_t>(page_size) * 2 * size;
    for (int h = 0; h < heads; ++h) {
        group[h] = draw(0, groups - 1);
        window[h] = draw(0, 2) ? draw(1, draw(1, 400)) : INT32_MAX;
        sink[h] = draw(0, 1) ? draw(0, 128) : 0;
        base[h] = h * pages * page_elements;
    }
    for (int i = 0; i < pages; ++i) table[i] = i;
    std::shuffle(table.begin(), table.end(), generator);
    Tensor pool(dtype, heads * pages * page_elements, NAN);
    std::vector<bool> needed(pages, false);
    auto row_of = [&](int h, int r, int j) {
        const int page = table[(static_cast<int64_t>(group[h]) * requests + r) * width + j / page_size];
        return base[h] + page * page_elements + j % page_size * 2 * size;
    };
    for (int h = 0; h < heads; ++h)
        for (int r = 0; r < requests; ++r) {
            const int rows = lengths.starts[r + 1] - lengths.starts[r], context = lengths.total[r] - rows;
            for (int j = 0; rows && j < lengths.total[r]; ++j) {
                // The query that sees j if any does: the first one at or after it, or any for a sink.
                if (!visible(std::max(j, context), j, window[h], sink[h])) continue;
                needed[(group[h] * requests + r) * width + j / page_size] = true;
                for (int d = 0; d < 2 * size; ++d) pool.set(row_of(h, r, j) + d, normal());
            }
        }
    for (int i = 0; i < pages; ++i)
        if (!needed[i]) table[i] = draw(0, 1) ? -draw(1, 1 << 30) : draw(pages, INT32_MAX);

    const int query_heads = heads * ratio, query_width = query_heads * size;
    const int64_t gap = draw(0, 1) * 16, query_stride = query_width + gap;
    Tensor query(dtype, std::max<int64_t>(0, tokens * query_stride - gap), NAN);
    for (int t = 0; t < tokens; ++t)
        for (int c = 0; c < query_width; ++c) query.set(t * query_stride + c, normal());
    const float scale = 1 / sqrtf(size), cap = draw(0, 3) ? 0 : 10;

    std::vector<double> expected(static_cast<size_t>(tokens) * query_width, 0);
    for (int r = 0; r < requests; ++r)
        for (int t = lengths.starts[r]; t < lengths.starts[r + 1]; ++t)
            for (int q = 0; q < query_heads; ++q) {
                const int h = q / ratio, i = lengths.total[r] - (lengths.starts[r + 1] - t);
                double sum = 0;
                for (int j = 0; j <= i; ++j) {
                    if (!visible(i, j, window[h], sink[h])) continue;
                    double score = 0;
                    const int64_t row = row_of(h, r, j);
                    for (int d = 0; d < size; ++d)
                        score += static_cast<double>(query.get(t * query_stride + q * size + d)) * pool.get(row + d);
                    score *= scale;
                    const double weight = exp(cap > 0 ? cap * tanh(score / cap) : score);
                    sum += weight;
                    for (int d = 0; d < size; ++d)
                        expected[static_cast<size_t>(t) * query_width + q * size + d] += weight * pool.get(row + size + d);
                }
                for (int d = 0; d < size; ++d) expected[static_cast<size_t>(t) * query_width + q * size + d] /= sum;
            }

    const double tolerance = dtype == SEGPAGED_BF16 ? 2e-2 : dtype == SEGPAGED_FP16 ? 3e-3 : 1e-5;
    for (int variant = 0; segpaged_variant_name(variant); ++variant) {
        if (!segpaged_variant_runs(variant)) continue;
        Tensor output(dtype, expected.size(), NAN);
        SegpagedArgs args = {};
        args.query = query.data();
        args.output = output.data();
        args.pool = pool.data();
        args.base = base.data();
        args.group = group.data();
        args.window = window.data();
        args.sink = sink.data();
        args.block_tables = table.data();
        args.cu_seqlens_q = lengths.starts.data();
        args.seq_lens = lengths.total.data();
        args.pool_elements = heads * pages * page_elements;
        args.query_stride = query_stride;
        args.output_stride = query_width;
        args.page_stride = page_elements;
        args.token_stride = 2 * size;
        args.value_offset = size;
        args.page_size = page_size;
        args.head_size = size;
        args.num_heads = query_heads;
        args.num_kv_heads = heads;
        args.num_requests = requests;
        args.table_width = width;
        args.num_tokens = tokens;
        args.dtype = dtype;
        args.variant = variant;
        // Emulated tiles are one set of globals.
        args.num_threads = strcmp(segpaged_variant_name(variant), "amx_bf16") ? draw(1, 4) : 1;
        args.softmax_scale = scale;
        args.soft_cap = cap;
        if (segpaged_attention(&args) != SEGPAGED_OK) fail(seed, "a sound batch was refused");
        for (size_t i = 0; i < expected.size(); ++i)
            if (!(fabs(output.get(i) - expected[i]) <= tolerance)) fail(seed, segpaged_variant_name(variant));

        // A visible page outside the pool must be refused, never read.
        const int victim = draw(0, pages - 1);
        if (!needed[victim]) continue;
        const int32_t kept = table[victim];
        table[victim] = draw(0, 1) ? -draw(1, INT32_MAX) : draw(pages, INT32_MAX);
        if (segpaged_attention(&args) != SEGPAGED_BAD_PAGE) fail(seed, "a page outside the pool was read");
        table[victim] = kept;
    }
}

void fuzz_kv_write(unsigned seed) {
    generator.seed(seed);
    const int heads = draw(1, 3), tokens = draw(0, 300), size = 16 * draw(2, 8), page_size = 16, pages = 8;
    const int64_t page_elements = static_cast<int64_t>(page_size) * 2 * size;
    std::vector<float> key(static_cast<size_t>(tokens) * heads * size, 1), value(key.size(), 2), pool(heads * pages * page_elements);
    std::vector<int64_t> base(heads), slots(tokens);
    std::vector<int32_t> group(heads, 0);
    for (int h = 0; h < heads; ++h) base[h] = h * pages * page_elements;
    // Slots beyond a segment fall into the next head's: only the pool's end is a boundary.
    const bool bad = draw(0, 3) == 0;
    for (int64_t& slot : slots) slot = draw(0, 5) ? draw(0, page_size * pages - 1) : -draw(1, 1000);
    if (bad && tokens) slots[draw(0, tokens - 1)] = (static_cast<int64_t>(draw(1, INT32_MAX)) << draw(0, 31)) + page_size * pages * heads;
    KvWriteArgs args = {key.data(), value.data(), pool.data(), base.data(), group.data(), slots.data(),
                        static_cast<int64_t>(pool.size()), heads * size, heads * size, page_elements, 2 * size, size,
                        page_size, size, heads, tokens, 4, draw(1, 3), 0, 0};
    const int status = segpaged_kv_write(&args);
    if ((status != 0) != (bad && tokens)) fail(seed, "kv write: a slot outside the pool");
}

}  // namespace

int main(int count, char** arguments) {
    const double seconds = count > 1 ? atof(arguments[1]) : 20;
    const unsigned first = count > 2 ? static_cast<unsigned>(atoi(arguments[2])) : 1;
    const time_t start = time(nullptr);
    unsigned cases = 0;
    for (; difftime(time(nullptr), start) < seconds; ++cases) {
        fuzz_attention(first + cases);
        fuzz_kv_write(first + cases);
    }
    printf("%u cases passed, seeds %u to %u, variants:", cases, first, first + cases - 1);
    for (int variant = 0; segpaged_variant_name(variant); ++variant)
        if (segpaged_variant_runs(variant)) printf(" %s", segpaged_variant_name(variant));
    printf("\n");
    return 0;
}
