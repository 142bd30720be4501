// Fixed-width integers. No toolkit header: NVRTC compiles these sources with nothing but this folder.
#pragma once

namespace billhook {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

struct alignas(16) u32x4 {
  u32 x, y, z, w;
};

}  // namespace billhook
