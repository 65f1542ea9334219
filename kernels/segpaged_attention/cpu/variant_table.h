// Assembles a variant's function table from the arithmetic it uses for each storage type.
#pragma once

template <class ForBf16, class ForFp16, class ForFp32>
struct Table {
    static int64_t bytes(const SegpagedArgs& args) {
        switch (args.dtype) {
            case SEGPAGED_BF16: return scratch_bytes<ForBf16>(args);
            case SEGPAGED_FP16: return scratch_bytes<ForFp16>(args);
            default: return scratch_bytes<ForFp32>(args);
        }
    }

    static bool run(SegpagedArgs& args, const Item& item, const Item* following, char* scratch, float* partials) {
        switch (args.dtype) {
            case SEGPAGED_BF16: return attend<ForBf16>(args, item, following, scratch, partials);
            case SEGPAGED_FP16: return attend<ForFp16>(args, item, following, scratch, partials);
            default: return attend<ForFp32>(args, item, following, scratch, partials);
        }
    }

    static void narrow(const SegpagedArgs& args, const Item& item, int row, const float* values, float factor) {
        switch (args.dtype) {
            case SEGPAGED_BF16: return write_row<ForBf16>(args, item, row, values, factor);
            case SEGPAGED_FP16: return write_row<ForFp16>(args, item, row, values, factor);
            default: return write_row<ForFp32>(args, item, row, values, factor);
        }
    }

    static void exp2(int dtype, const float* in, float* out, int count) {
        constexpr int W = ForFp32::kWidth;
        for (int i = 0; i < count; i += W) {
            typename Lanes<W>::F x = load<typename Lanes<W>::F>(in + i);
            store(out + i, dtype == SEGPAGED_FP32 ? exp2_lanes<W, 6>(x) : exp2_lanes<W, 4>(x));
        }
    }
};
