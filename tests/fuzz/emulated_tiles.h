// AMX tiles in plain C++, so that the AMX variant's blocking is exercised on processors without them.
#pragma once
#include <stdint.h>
#include <string.h>

namespace emulated {

inline float tile[8][16][16];

inline float widen(uint16_t raw) {
    uint32_t bits = static_cast<uint32_t>(raw) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void load(int t, const void* base, int64_t stride) {
    for (int row = 0; row < 16; ++row) memcpy(tile[t][row], static_cast<const char*>(base) + row * stride, 64);
}

inline void store(int t, void* base, int64_t stride) {
    for (int row = 0; row < 16; ++row) memcpy(static_cast<char*>(base) + row * stride, tile[t][row], 64);
}

inline void dot(int c, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n)
            for (int k = 0; k < 16; ++k) {
                uint16_t left[2], right[2];
                memcpy(left, &tile[a][m][k], 4);
                memcpy(right, &tile[b][k][n], 4);
                tile[c][m][n] += widen(left[0]) * widen(right[0]) + widen(left[1]) * widen(right[1]);
            }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd(t, base, stride) emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) emulated::store(t, base, stride)
#define _tile_zero(t) memset(emulated::tile[t], 0, sizeof(emulated::tile[t]))
#define _tile_dpbf16ps(c, a, b) emulated::dot(c, a, b)
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
