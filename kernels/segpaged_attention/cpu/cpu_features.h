// Which variants were built, and which this CPU and operating system run.
#pragma once
#include "item.h"

namespace segpaged {

const Variant* variant_at(int index);  // best first; null out of range
bool variant_runs(const Variant* variant);
const Variant* best_variant();

}  // namespace segpaged
