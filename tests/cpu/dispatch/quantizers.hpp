// What the model of SM90 lacks of the instructions of ptx/warp.cuh and kernel/quantize.cuh, as the PTX ISA has them.
namespace cpu {

template <class T, class What>
void exchange(T v, T* to, What what) {
  struct Lane { T v, *to; } mine = {v, to};
  together(mine, [what](Lane* const* lanes) {
    T all[32];
    for (int lane = 0; lane < 32; ++lane) all[lane] = lanes[lane]->v;
    for (int lane = 0; lane < 32; ++lane) *lanes[lane]->to = what(all, lane);
  });
}

inline void redux_sync_max_u32(u32& d, u32 a, u32) {
  u32 got;
  exchange(a, &got, [](const u32* all, int) { return *std::max_element(all, all + 32); });
  d = got;
}

inline void redux_sync_add_s32(i32& d, i32 a, u32) {
  i32 got;
  exchange(a, &got, [](const i32* all, int) {
    i32 sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += all[lane];
    return sum;
  });
  d = got;
}
inline u32 lanemask_lt() { return (1u << self->index.x % 32) - 1; }

inline void cvt_rni_s32_f32(i32& d, float a) {
  d = a != a ? 0 : a >= 0x1p31f ? 0x7fffffff : a < -0x1p31f ? -0x7fffffff - 1 : static_cast<i32>(std::nearbyint(a));
}
inline void cvt_pack_sat_s8_s32_b32(u32& d, i32 a, i32 b, u32 c) {
  const auto code = [](i32 v) { return static_cast<u32>(std::clamp(v, -128, 127)) & 0xff; };
  d = c << 16 | code(a) << 8 | code(b);
}

// The nearest of all codes, the even one of two.
inline u32 e4m3_code(float a) {
  if (a != a) return 0x7f;
  u32 best = 0;
  for (u32 code = 1; code < 0x7f; ++code) {
    const double off = std::fabs(e4m3::value(code) - std::fabs(a)), before = std::fabs(e4m3::value(best) - std::fabs(a));
    if (off < before || (off == before && code % 2 == 0)) best = code;
  }
  if (std::fabs(a) >= 448) best = 0x7e;
  return best | (std::signbit(a) ? 0x80 : 0);
}
inline void cvt_rn_satfinite_e4m3x2_f32(u16& d, float a, float b) { d = e4m3_code(a) << 8 | e4m3_code(b); }

}  // namespace cpu

inline unsigned __ballot_sync(unsigned, bool yes) {
  unsigned got;
  cpu::exchange<unsigned>(yes, &got, [](const unsigned* all, int) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= all[lane] << lane;
    return votes;
  });
  return got;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <class T>
T __shfl_xor_sync(unsigned, T v, int other) {
  T got;
  cpu::exchange(v, &got, [other](const T* all, int lane) { return all[lane ^ other]; });
  return got;
}
