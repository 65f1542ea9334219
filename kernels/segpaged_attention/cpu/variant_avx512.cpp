// AVX-512 (F, BW, DQ, VL): fp32 arithmetic, 6 x 4 accumulators in 32 registers.
#include <immintrin.h>

#include "item.h"

namespace segpaged {
namespace {
#include "lanes.h"
#include "scratch.h"
#include "multiply.h"
#include "math_fp32.h"
#include "attend.h"
#include "variant_table.h"

template <class Storage>
using Fp32 = Fp32Math<16, 4, 6, Storage>;
using Functions = Table<Fp32<Bf16>, Fp32<Fp16>, Fp32<float>>;
}  // namespace

const Variant kAvx512 = {"avx512", Functions::bytes, Functions::run, Functions::narrow, Functions::exp2};
}  // namespace segpaged
