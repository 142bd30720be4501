// Activations to 8 bits: codes and a float32 scale for each token, found from it or given for all. SM75+.
// `formats/activations.py` does the same, to the bit.
//
// A CTA takes a token at a time. Its threads hold kHeld pieces of 16 bytes each, 16384 numbers of 16 bits in all: a token that
// is no longer is read once. Of a longer one the last part is still there when the scale is known; the others are read again,
// from a cache. Tokens that are not aligned to 16 bytes are read number by number.
#pragma once
#include "billhook/numeric/encode.cuh"
#include "billhook/numeric/float16.cuh"
#include "billhook/ptx/grid.cuh"
#include "billhook/ptx/warp.cuh"

namespace billhook::quantize {

constexpr i32 kThreads = 256;
constexpr i32 kWarps = kThreads / 32;
constexpr i32 kHeld = 8;
constexpr i32 kCtasPerSm = 4;  // while some wait for memory, others compute; 64 registers are enough

struct Params {
  const char* x;       // [rows, k]
  char* codes;         // [rows, k], dense
  float* scales;       // [rows]
  const float* given;  // the scale of all tokens; null: `number`
  i64 stride;          // bytes between rows of x
  i32 rows;
  i32 k;
  float number;        // the scale of all tokens if `given` is null; 0: each token gets its own
  i32 aligned;         // 1: rows of x begin at multiples of 16 bytes, and fill as many
};

struct f32 {
  static __device__ __forceinline__ float low(u32 bits) { return __uint_as_float(bits); }
};

template <class X>
constexpr bool is_half = true;
template <>
constexpr bool is_half<f32> = false;

// What a thread loads at a time: 16 bytes, or one number in the lower bits of a word.
template <class X, bool kWide>
struct Piece {
  static constexpr i32 kWords = kWide ? 4 : 1;
  static constexpr i32 kNumbers = kWide ? (is_half<X> ? 8 : 4) : 1;
  static constexpr i32 kBytes = kWide ? 16 : is_half<X> ? 2 : 4;  // of X; codes take kNumbers
  u32 words[kWords];

  __device__ __forceinline__ void load(const char* from) {
    if constexpr (kWide) {
      const u32x4 v = *reinterpret_cast<const u32x4*>(from);
      words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if constexpr (is_half<X>) {
      words[0] = *reinterpret_cast<const u16*>(from);
    } else {
      words[0] = *reinterpret_cast<const u32*>(from);
    }
  }

  __device__ __forceinline__ float number(i32 i) const {
    if constexpr (!is_half<X>)
      return X::low(words[i]);
    else
      return i % 2 ? X::high(words[i / 2]) : X::low(words[i / 2]);
  }

  // The bits of the largest magnitude, or of a NaN, here and in `so_far`: without their sign they grow with the number.
  __device__ __forceinline__ u32 largest(u32 so_far) const {
#pragma unroll
    for (i32 i = 0; i < kWords; ++i) {
      so_far = max(so_far, words[i] & (is_half<X> ? 0x7fffu : 0x7fffffffu));
      if constexpr (is_half<X>) so_far = max(so_far, words[i] >> 16 & 0x7fffu);
    }
    return so_far;
  }

  // Stores the codes.
  template <class Code>
  __device__ __forceinline__ void encode(const Divisor& by, char* to) const {
    constexpr i32 kFours = (kNumbers + 3) / 4;
    u32 codes[kFours];
#pragma unroll
    for (i32 i = 0; i < kFours; ++i) {
      float v[4] = {};
#pragma unroll
      for (i32 j = 0; j < 4 && j < kNumbers; ++j) v[j] = number(4 * i + j);
      divide(v, by);
      codes[i] = Encode<Code>::run(v) & by.mask;
    }
    if constexpr (kNumbers == 8)
      *reinterpret_cast<uint2*>(to) = make_uint2(codes[0], codes[1]);
    else if constexpr (kNumbers == 4)
      *reinterpret_cast<u32*>(to) = codes[0];
    else
      *to = static_cast<char>(codes[0]);
  }
};

// The largest of all threads' values. Successive calls take turns with two arrays, so that none waits for readers.
__device__ __forceinline__ u32 cta_max(u32 value, u32 (&of_warps)[kWarps]) {
  value = ptx::warp_max(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
#pragma unroll
  for (i32 warp = 0; warp < kWarps; ++warp) value = max(value, of_warps[warp]);
  return value;
}

template <class X, class Code, bool kWide>
__device__ __forceinline__ void quantize_rows(const Params& p) {
  using Piece = quantize::Piece<X, kWide>;
  constexpr i32 kPart = kThreads * kHeld;  // pieces
  __shared__ u32 maxima[2][kWarps];
  const i32 pieces = p.k / Piece::kNumbers, parts = (pieces + kPart - 1) / kPart;
  const float given = p.given != nullptr ? *p.given : p.number;
  const bool dynamic = p.given == nullptr && p.number == 0;

  i32 turn = 0;
  for (i32 row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
    const char* const from = p.x + row * p.stride;
    char* const to = p.codes + static_cast<i64>(row) * p.k;
    Piece held[kHeld];
    const auto place = [](i32 part, i32 i) { return part * kPart + i * kThreads + static_cast<i32>(threadIdx.x); };
    const auto load = [&](i32 part) {
#pragma unroll
      for (i32 i = 0; i < kHeld; ++i) {
        const i64 at = place(part, i);
        if (at < pieces) held[i].load(from + at * Piece::kBytes);
      }
    };

    float scale = given;
    if (dynamic) {
      u32 largest = 0;
      for (i32 part = 0; part < parts; ++part) {
        load(part);
#pragma unroll
        for (i32 i = 0; i < kHeld; ++i)
          if (place(part, i) < pieces) largest = held[i].largest(largest);
      }
      scale = X::low(cta_max(largest, maxima[turn])) / Encode<Code>::kLargest;
    } else {
      load(parts - 1);
    }
    if (threadIdx.x == 0) p.scales[row] = scale;

    const Divisor by = divide_by(scale);
    for (i32 part = parts - 1;; --part) {
#pragma unroll
      for (i32 i = 0; i < kHeld; ++i) {
        const i64 at = place(part, i);
        if (at < pieces) held[i].template encode<Code>(by, to + at * Piece::kNumbers);
      }
      if (part == 0) break;
      load(part - 1);
    }
  }
}

template <class X, class Code>
__device__ __forceinline__ void run(const Params& p) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  if (p.aligned)
    quantize_rows<X, Code, true>(p);
  else
    quantize_rows<X, Code, false>(p);
}

}  // namespace billhook::quantize
