// Cuts a call into work items, runs them on OpenMP threads, and joins items whose keys were split. C entry points.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu_features.h"
#include "item.h"

namespace segpaged {
namespace {

// Keys a split must leave to each part: below, joining costs more than it gains.
constexpr int kMinSplitKeys = 256;
// Packing a key costs about as much as this many query rows attending to it.
constexpr int kPackRows = 6;

struct Memory {
    char* data = nullptr;
    int64_t size = 0;

    char* reserve(int64_t bytes) {
        if (bytes <= size) return data;
        free(data);
        size = (bytes + 4095) / 4096 * 4096;
        data = static_cast<char*>(aligned_alloc(4096, size));
        if (!data) size = 0;
        return data;
    }
    ~Memory() { free(data); }
};

// A function of its own, so that every OpenMP thread passes the definition and frees its memory when it ends.
Memory& thread_scratch() {
    static thread_local Memory memory;
    return memory;
}

struct Split {
    Item item;  // of the first part; the parts follow one another in the list of items
    int first, parts;
};

struct Plan {
    std::vector<Item> items;
    std::vector<int64_t> costs;
    std::vector<Split> splits;
    int64_t partial_floats = 0;
};

int ratio_of(const SegpagedArgs& args) { return args.num_heads / args.num_kv_heads; }

int fail(SegpagedArgs& args, int status, int request, int position) {
    args.bad_request = request;
    args.bad_position = position;
    return status;
}

int check_lengths(SegpagedArgs& args) {
    const int32_t* starts = args.cu_seqlens_q;
    for (int r = 0; r < args.num_requests; ++r) {
        const int64_t rows = (int64_t)starts[r + 1] - starts[r];
        if (rows < 0 || starts[r] < 0 || starts[r + 1] > args.num_tokens || (rows && rows > args.seq_lens[r]) ||
            (rows && args.seq_lens[r] > (int64_t)args.table_width * args.page_size))
            return fail(args, SEGPAGED_BAD_LENGTH, r, args.seq_lens[r]);
    }
    return SEGPAGED_OK;
}

int64_t item_cost(int64_t rows, int64_t keys) { return (rows + kPackRows) * keys; }

void plan_items(const SegpagedArgs& args, Plan& plan) {
    const int ratio = ratio_of(args);
    const int tile = std::max(1, kItemRows / ratio);
    int64_t total = 0;
    for (int head = 0; head < args.num_kv_heads; ++head) {
        for (int r = 0; r < args.num_requests; ++r) {
            const int rows = args.cu_seqlens_q[r + 1] - args.cu_seqlens_q[r];
            const int context = args.seq_lens[r] - rows;
            for (int token = 0; token < rows; token += tile) {
                const int end = std::min(rows, token + tile);
                const KeyRun run = key_run(context + token, context + end - 1, args.window[head], args.sink[head]);
                plan.items.push_back({r, head, token, end, 0, run.count, -1});
                plan.costs.push_back(item_cost((int64_t)(end - token) * ratio, run.count));
                total += plan.costs.back();
            }
        }
    }
    if (args.num_threads <= 1) return;

    // Parts of at most a third of a thread's share keep the threads level at the end of the call.
    const int64_t share = std::max<int64_t>(1, total / (3 * (int64_t)args.num_threads));
    Plan cut;
    for (size_t i = 0; i < plan.items.size(); ++i) {
        Item item = plan.items[i];
        const int keys = item.key_end, rows = (item.token_end - item.token_begin) * ratio;
        const int parts = (int)std::min<int64_t>((plan.costs[i] + share - 1) / share, keys / kMinSplitKeys);
        if (parts <= 1) {
            cut.items.push_back(item);
            cut.costs.push_back(plan.costs[i]);
            continue;
        }
        cut.splits.push_back({item, (int)cut.items.size(), parts});
        for (int part = 0; part < parts; ++part) {
            item.key_begin = (int)((int64_t)keys * part / parts);
            item.key_end = (int)((int64_t)keys * (part + 1) / parts);
            item.partial = cut.partial_floats;
            cut.partial_floats += (int64_t)rows * (args.head_size + 2);
            cut.items.push_back(item);
            cut.costs.push_back(item_cost(rows, item.key_end - item.key_begin));
        }
    }
    plan = std::move(cut);
}

// Joins the parts of one split item; weights of parts are exact powers relative to the highest maximum.
void join(const SegpagedArgs& args, const Plan& plan, const Split& split, const Variant& variant, const float* partials,
          float* row_result) {
    const int ratio = ratio_of(args), size = args.head_size;
    const int rows = (split.item.token_end - split.item.token_begin) * ratio;
    for (int r = 0; r < rows; ++r) {
        float highest = -3e38f, sum = 0;
        const Item* parts = plan.items.data() + split.first;
        auto maximum_of = [&](int p) { return partials[parts[p].partial + (int64_t)rows * size + r]; };
        for (int p = 0; p < split.parts; ++p) highest = std::max(highest, maximum_of(p));
        std::fill(row_result, row_result + size, 0.0f);
        for (int p = 0; p < split.parts; ++p) {
            alignas(64) float factor[16] = {maximum_of(p) - highest};
            variant.exp2(SEGPAGED_FP32, factor, factor, 16);
            const float* source = partials + parts[p].partial + (int64_t)r * size;
            for (int d = 0; d < size; ++d) row_result[d] += factor[0] * source[d];
            sum += factor[0] * partials[parts[p].partial + (int64_t)rows * (size + 1) + r];
        }
        variant.narrow(args, split.item, r, row_result, 1.0f / sum);
    }
}

int run(SegpagedArgs& args, const Variant& variant) {
    static thread_local Plan plan;
    static thread_local Memory partial_memory;
    plan.items.clear();
    plan.costs.clear();
    plan.splits.clear();
    plan.partial_floats = 0;
    plan_items(args, plan);
    const int count = (int)plan.items.size();
    float* partials = reinterpret_cast<float*>(partial_memory.reserve(plan.partial_floats * (int64_t)sizeof(float) + 1));
    if (!partials) return SEGPAGED_NO_MEMORY;
    std::vector<int> order(args.num_threads > 1 ? count : 0);
    for (size_t i = 0; i < order.size(); ++i) order[i] = (int)i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return plan.costs[a] > plan.costs[b]; });

    std::atomic<int> status{SEGPAGED_OK};
    const int64_t bytes = variant.scratch_bytes(args);
    auto work = [&](const Plan& shared, int i, const Item* following, char* memory) {
        SegpagedArgs local = args;
        if (variant.attend(local, shared.items[order.empty() ? i : order[i]], following, memory, partials)) return;
        int expected = SEGPAGED_OK;
        if (status.compare_exchange_strong(expected, SEGPAGED_BAD_PAGE)) args = local;
    };
    if (args.num_threads <= 1 || count <= 1) {
        char* memory = thread_scratch().reserve(bytes);
        if (!memory) return SEGPAGED_NO_MEMORY;
        for (int i = 0; i < count && status == SEGPAGED_OK; ++i) work(plan, i, order.empty() && i + 1 < count ? &plan.items[i + 1] : nullptr, memory);
        return status;
    }
    const Plan& shared = plan;
    const int threads = std::min(args.num_threads, count);
#pragma omp parallel num_threads(threads)
    {
        char* memory = thread_scratch().reserve(bytes);
        if (!memory) status = SEGPAGED_NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < count; ++i)
            if (memory && status == SEGPAGED_OK) work(shared, i, nullptr, memory);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < shared.splits.size(); ++i)
            if (memory && status == SEGPAGED_OK)
                join(args, shared, shared.splits[i], variant, partials, reinterpret_cast<float*>(memory));
    }
    return status;
}

}  // namespace
}  // namespace segpaged

extern "C" int segpaged_attention(SegpagedArgs* args) {
    using namespace segpaged;
    const Variant* variant = args->variant < 0 ? best_variant() : variant_at(args->variant);
    if (!variant || !variant_runs(variant)) return SEGPAGED_NO_VARIANT;
    const int status = check_lengths(*args);
    return status == SEGPAGED_OK ? run(*args, *variant) : status;
}

extern "C" const char* segpaged_variant_name(int index) {
    const segpaged::Variant* variant = segpaged::variant_at(index);
    return variant ? variant->name : nullptr;
}

extern "C" int segpaged_variant_runs(int index) {
    const segpaged::Variant* variant = segpaged::variant_at(index);
    return variant && segpaged::variant_runs(variant);
}

extern "C" int segpaged_exp2(int index, int dtype, const float* in, float* out, int count) {
    const segpaged::Variant* variant = segpaged::variant_at(index);
    if (!variant || !segpaged::variant_runs(variant)) return SEGPAGED_NO_VARIANT;
    variant->exp2(dtype, in, out, count);
    return SEGPAGED_OK;
}
