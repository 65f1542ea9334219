#include "cpu_features.h"

#ifdef SEGPAGED_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace segpaged {
namespace {

const Variant* const kVariants[] = {
#ifdef SEGPAGED_X86
#ifdef SEGPAGED_AMX
    &kAmx,
#endif
    &kAvx512Bf16, &kAvx512, &kAvx2,
#endif
    &kPortable,
};
constexpr int kCount = sizeof(kVariants) / sizeof(kVariants[0]);

#ifdef SEGPAGED_X86
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef SEGPAGED_AMX
// CPUID says the processor has AMX-TILE and AMX-BF16; Linux then hands out the tile state on request only.
bool has_amx() {
#ifdef SEGPAGED_EMULATE_TILES
    return true;
#endif
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d & (1u << 24)) || !(d & (1u << 22))) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool detect(const Variant* variant) {
#ifdef SEGPAGED_X86
    __builtin_cpu_init();
#ifdef SEGPAGED_AMX
    if (variant == &kAmx) return has_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx();
#endif
    if (variant == &kAvx512Bf16) return has_avx512() && __builtin_cpu_supports("avx512bf16");
    if (variant == &kAvx512) return has_avx512();
    if (variant == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return variant == &kPortable;
}

struct Runs {
    bool value[kCount];
    Runs() {
        for (int i = 0; i < kCount; ++i) value[i] = detect(kVariants[i]);
    }
};

}  // namespace

const Variant* variant_at(int index) { return index >= 0 && index < kCount ? kVariants[index] : nullptr; }

bool variant_runs(const Variant* variant) {
    static const Runs runs;
    for (int i = 0; i < kCount; ++i)
        if (kVariants[i] == variant) return runs.value[i];
    return false;
}

const Variant* best_variant() {
    for (const Variant* variant : kVariants)
        if (variant_runs(variant)) return variant;
    return nullptr;
}

}  // namespace segpaged
