// Copies the K and V rows of a step into the pages of every head's segment.
#include "kv_write.h"

#include <string.h>

#include <atomic>

namespace {

// Rows a thread takes at once: small steps stay on one thread.
constexpr int kTokensPerThread = 128;

bool write_rows(KvWriteArgs& args, int begin, int end) {
    const int64_t row_bytes = (int64_t)args.head_size * args.element_size;
    const int64_t reach = args.head_size + (args.value_offset > 0 ? args.value_offset : 0);
    char* pool = static_cast<char*>(args.pool);
    const char* key = static_cast<const char*>(args.key);
    const char* value = static_cast<const char*>(args.value);
    for (int token = begin; token < end; ++token) {
        for (int head = 0; head < args.num_kv_heads; ++head) {
            const int64_t slot = args.slot_mappings[(int64_t)args.group[head] * args.num_tokens + token];
            if (slot < 0) continue;
            const int64_t page = slot / args.page_size;
            if (page > (args.pool_elements - args.base[head]) / args.page_stride) {
                args.bad_slot = slot;
                args.bad_head = head;
                return false;
            }
            const int64_t row = args.base[head] + page * args.page_stride + slot % args.page_size * args.token_stride;
            if (row + reach > args.pool_elements) {
                args.bad_slot = slot;
                args.bad_head = head;
                return false;
            }
            const int64_t column = (int64_t)head * args.head_size;
            memcpy(pool + row * args.element_size, key + (token * args.key_stride + column) * args.element_size, row_bytes);
            memcpy(pool + (row + args.value_offset) * args.element_size,
                   value + (token * args.value_stride + column) * args.element_size, row_bytes);
        }
    }
    return true;
}

}  // namespace

extern "C" int segpaged_kv_write(KvWriteArgs* args) {
    const int parts = (args->num_tokens + kTokensPerThread - 1) / kTokensPerThread;
    if (args->num_threads <= 1 || parts <= 1) return write_rows(*args, 0, args->num_tokens) ? 0 : 1;
    std::atomic<int> status{0};
    const KvWriteArgs shared = *args;
#pragma omp parallel for num_threads(args->num_threads) schedule(static)
    for (int part = 0; part < parts; ++part) {
        KvWriteArgs local = shared;
        const int begin = part * kTokensPerThread;
        const int end = begin + kTokensPerThread < local.num_tokens ? begin + kTokensPerThread : local.num_tokens;
        int expected = 0;
        if (!write_rows(local, begin, end) && status.compare_exchange_strong(expected, 1)) *args = local;
    }
    return status;
}
