// AMX-BF16: matrix tiles for bf16 storage, AVX-512 fp32 arithmetic for the rest.
#include <immintrin.h>

#ifdef SEGPAGED_EMULATE_TILES
#include "emulated_tiles.h"
#endif
#include "item.h"

namespace segpaged {
namespace {
#include "lanes.h"
#include "scratch.h"
#include "multiply.h"
#include "math_fp32.h"
#include "math_bf16.h"
#include "math_amx.h"
#include "attend.h"
#include "variant_table.h"

template <class Storage>
using Fp32 = Fp32Math<16, 4, 6, Storage>;
using Functions = Table<AmxMath, Fp32<Fp16>, Fp32<float>>;
}  // namespace

const Variant kAmx = {"amx_bf16", Functions::bytes, Functions::run, Functions::narrow, Functions::exp2};
}  // namespace segpaged
