// AVX-512 BF16: vdpbf16ps for bf16 storage, fp32 arithmetic for the rest.
#include <immintrin.h>

#include "item.h"

namespace segpaged {
namespace {
#include "lanes.h"
#include "scratch.h"
#include "multiply.h"
#include "math_fp32.h"
#include "math_bf16.h"
#include "attend.h"
#include "variant_table.h"

template <class Storage>
using Fp32 = Fp32Math<16, 4, 6, Storage>;
using Functions = Table<Bf16Math, Fp32<Fp16>, Fp32<float>>;
}  // namespace

const Variant kAvx512Bf16 = {"avx512_bf16", Functions::bytes, Functions::run, Functions::narrow, Functions::exp2};
}  // namespace segpaged
