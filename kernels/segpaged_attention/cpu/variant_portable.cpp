// Any processor the compiler targets: vectors of four floats, no instruction set assumed.
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
using Fp32 = Fp32Math<4, 2, 6, Storage>;
using Functions = Table<Fp32<Bf16>, Fp32<Fp16>, Fp32<float>>;
}  // namespace

const Variant kPortable = {"portable", Functions::bytes, Functions::run, Functions::narrow, Functions::exp2};
}  // namespace segpaged
