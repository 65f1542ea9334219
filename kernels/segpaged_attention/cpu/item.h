// One work item, and the functions an instruction-set variant offers the scheduler. No standard C++ headers here: variants
// are compiled for different instruction sets, and an inline function they share by name could be merged across them.
#pragma once
#include "abi.h"

namespace segpaged {

// Keys an item attends are numbered 0 .. count: first the sinks, then the window, gaps closed. Keys no query of the item
// sees have no number, so their pages cannot be touched.
struct KeyRun {
    int sinks;   // keys 0 .. sinks lie at positions 0 .. sinks
    int shift;   // key k >= sinks lies at position k + shift
    int count;
};

struct Item {
    int request;
    int head;        // KV head
    int token_begin; // query tokens of the request, 0 .. its query length
    int token_end;
    int key_begin;   // numbered keys of the item's run
    int key_end;
    int64_t partial; // float offset into Item results of a split item, or -1: the item writes the output itself
};

inline static KeyRun key_run(int first_position, int last_position, int window, int sink) {
    int sink_end = sink < last_position + 1 ? sink : last_position + 1;
    int window_begin = first_position - window + 1 > 0 ? first_position - window + 1 : 0;
    if (window_begin <= sink_end) return {0, 0, last_position + 1};
    return {sink_end, window_begin - sink_end, sink_end + last_position + 1 - window_begin};
}

inline static KeyRun key_run_of(const SegpagedArgs& args, const Item& item) {
    const int rows = args.cu_seqlens_q[item.request + 1] - args.cu_seqlens_q[item.request];
    const int context = args.seq_lens[item.request] - rows;
    return key_run(context + item.token_begin, context + item.token_end - 1, args.window[item.head], args.sink[item.head]);
}

// Partial result of a split item: [rows][head_size] weighted values, then [rows] maxima (log2 domain), then [rows] sums.
struct Variant {
    const char* name;
    int64_t (*scratch_bytes)(const SegpagedArgs&);
    // Returns false when a visible page lies outside the pool, after filling args.bad_*. `following`, or null, is the item
    // this thread will take next: its first keys are fetched while this one ends.
    bool (*attend)(SegpagedArgs&, const Item&, const Item* following, char* scratch, float* partials);
    // Stores factor * values as the item's query row `row` of the output.
    void (*narrow)(const SegpagedArgs&, const Item&, int row, const float* values, float factor);
    void (*exp2)(int dtype, const float* in, float* out, int count);
};

// Query rows (tokens x heads per KV head) an item should have in prefill: packing a key tile is shared by this many.
constexpr int kItemRows = 256;

extern const Variant kPortable;
#ifdef SEGPAGED_X86
extern const Variant kAvx2;
extern const Variant kAvx512;
extern const Variant kAvx512Bf16;
#ifdef SEGPAGED_AMX
extern const Variant kAmx;
#endif
#endif

}  // namespace segpaged
