// The C interface of the KV write. Strides and offsets in elements.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const void* key;              // [tokens, num_kv_heads, head_size], rows key_stride apart
    const void* value;
    void* pool;
    const int64_t* base;          // [num_kv_heads]
    const int32_t* group;         // [num_kv_heads]
    const int64_t* slot_mappings; // [groups, num_tokens]; negative: not stored
    int64_t pool_elements;
    int64_t key_stride;
    int64_t value_stride;
    int64_t page_stride;
    int64_t token_stride;
    int64_t value_offset;
    int32_t page_size;
    int32_t head_size;
    int32_t num_kv_heads;
    int32_t num_tokens;
    int32_t element_size;         // bytes
    int32_t num_threads;
    int64_t bad_slot;             // out
    int32_t bad_head;             // out
} KvWriteArgs;

// Returns 0, or 1 when a slot lies outside the pool; rows before it may have been stored.
__attribute__((visibility("default"))) int segpaged_kv_write(KvWriteArgs* args);

#ifdef __cplusplus
}
#endif
