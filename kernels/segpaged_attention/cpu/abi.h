// The C interface that Python calls through ctypes. Plain structs; strides and offsets in elements.
#pragma once
#include <stdint.h>

#define SEGPAGED_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum SegpagedDtype { SEGPAGED_BF16 = 0, SEGPAGED_FP16 = 1, SEGPAGED_FP32 = 2 };

enum SegpagedStatus {
    SEGPAGED_OK = 0,
    SEGPAGED_BAD_PAGE = 1,       // a visible page lies outside the pool
    SEGPAGED_BAD_LENGTH = 2,     // cu_seqlens_q, seq_lens and the table width contradict each other
    SEGPAGED_NO_MEMORY = 3,
    SEGPAGED_NO_VARIANT = 4,     // the variant is unknown or this CPU cannot run it
};

typedef struct {
    const void* query;            // [tokens, num_heads, head_size], rows query_stride apart
    void* output;                 // [tokens, num_heads, head_size], rows output_stride apart
    const void* pool;             // [pool_elements]
    const int64_t* base;          // [num_kv_heads]
    const int32_t* group;         // [num_kv_heads]
    const int32_t* window;        // [num_kv_heads], >= 1
    const int32_t* sink;          // [num_kv_heads], >= 0
    const int32_t* block_tables;  // [groups, num_requests, table_width]
    const int32_t* cu_seqlens_q;  // [num_requests + 1]
    const int32_t* seq_lens;      // [num_requests]
    int64_t pool_elements;
    int64_t query_stride;
    int64_t output_stride;
    int64_t page_stride;
    int64_t token_stride;
    int64_t value_offset;
    int32_t page_size;
    int32_t head_size;            // a multiple of 16
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t num_requests;
    int32_t table_width;
    int32_t num_tokens;
    int32_t dtype;                // SegpagedDtype of query, output and pool
    int32_t variant;              // index into segpaged_variant_name, or -1: the best this CPU runs
    int32_t num_threads;
    float softmax_scale;          // > 0
    float soft_cap;               // 0: none
    int32_t bad_request;          // out: where SEGPAGED_BAD_PAGE or SEGPAGED_BAD_LENGTH was found
    int32_t bad_head;             // out
    int32_t bad_position;         // out
    int32_t bad_page;             // out
} SegpagedArgs;

SEGPAGED_API int segpaged_attention(SegpagedArgs* args);

// Name of variant `index`, best first; null past the last. A name is listed when the compiler could build it.
SEGPAGED_API const char* segpaged_variant_name(int index);
// 1 when this CPU and operating system run the variant.
SEGPAGED_API int segpaged_variant_runs(int index);
// The variant's 2^x, for tests: out[i] = 2^in[i], count a multiple of 16. Uses the polynomial of `dtype`.
SEGPAGED_API int segpaged_exp2(int variant, int dtype, const float* in, float* out, int count);

#ifdef __cplusplus
}
#endif
