// Packing of weights on the GPU: from the orders in which checkpoints hold codes and scales to the one that kernels read
// (docs/layout.md, "Packed weights"). SM75+. `formats/pack.py` does the same, to the bit.
//
// Codes: a CTA takes 128 (n) x 128 (k) of them, through shared memory, where they lie as bytes whatever they came as: four
// of consecutive k in a word. A `Source` reads global memory in whole sectors of 32 bytes and says which words it holds; the
// writer makes 512 contiguous bytes a warp. Neither side meets a bank conflict, except the bytes of `Gptq<4>`, twofold.
#pragma once
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook::pack {

constexpr i32 kThreads = 256;
constexpr i32 kWarps = kThreads / 32;
constexpr i32 kTile = 128;            // codes along n and along k that a CTA takes
constexpr i32 kWords = kTile / 4;     // words of a row of the tile
constexpr i32 kStrips = kTile / kStrip;

struct Codes {
  const void* source;   // [experts,] as the Source says, aligned to 16 bytes
  u32* packed;          // [experts,] n64, k64, words of a block
  i32* refused;         // set to 1 if a code is out of range
  i32 n;                // output features, a multiple of 16
  i32 k;                // input features, a multiple of 16
  u32 padding;          // four times the code that stands for zero
  i32 refuse_nan;       // 1: refuse the codes 0x7f and 0xff, NaN of e4m3
  const i32* order;     // [k], for an `Ordered` source: the stored input feature that each packed one is; else unused
};

// Where word `w` of row `row` lies: 16-byte groups are exchanged so that eight rows side by side, and every eighth row,
// have different banks for the same word.
__device__ __forceinline__ i32 slot(i32 row, i32 w) { return row * kWords + (w ^ (((row ^ (row >> 3)) & 7) << 2)); }

// Transposes 4 x 4 bytes.
__device__ __forceinline__ void transpose(u32 (&v)[4]) {
  const u32 a = __byte_perm(v[0], v[1], 0x5140), b = __byte_perm(v[0], v[1], 0x7362);
  const u32 c = __byte_perm(v[2], v[3], 0x5140), d = __byte_perm(v[2], v[3], 0x7362);
  v[0] = __byte_perm(a, c, 0x5410);
  v[1] = __byte_perm(a, c, 0x7632);
  v[2] = __byte_perm(b, d, 0x5410);
  v[3] = __byte_perm(b, d, 0x7632);
}

// Eight nibbles, lowest first, as bytes.
__device__ __forceinline__ uint2 spread(u32 nibbles) {
  const u32 even = nibbles & 0x0f0f0f0f, odd = nibbles >> 4 & 0x0f0f0f0f;
  return make_uint2(__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362));
}

// A weight's codes as they are stored.
struct Stored {
  const void* codes;
  const i32* order;
  i64 n;
  i64 k;
};

// A Source reads units of `kUnitN` x `kUnitK` codes; `kLanesN` lanes of a warp lie side by side along n, the others along k.
// `load` gets where a unit begins in the weight, `store` where in the tile (`w` counts words along k); `code` reads one.

// One byte a code, [k, n].
struct BytesKn {
  static constexpr i32 kUnitN = 4, kUnitK = 4, kLanesN = 8;
  struct Unit {
    u32 v[4];
  };
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    const u8* at = static_cast<const u8*>(from.codes) + k * from.n + n;
    Unit unit;
#pragma unroll
    for (i32 r = 0; r < 4; ++r) unit.v[r] = __ldg(reinterpret_cast<const u32*>(at + r * from.n));
    return unit;
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) {
    transpose(unit.v);
#pragma unroll
    for (i32 c = 0; c < 4; ++c) tile[slot(row + c, w)] = unit.v[c];
  }
};

// One byte a code, [n, k].
struct BytesNk {
  static constexpr i32 kUnitN = 1, kUnitK = 16, kLanesN = 4;
  using Unit = uint4;
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    return __ldg(reinterpret_cast<const uint4*>(static_cast<const u8*>(from.codes) + n * from.k + k));
  }
  static __device__ __forceinline__ u32 code(const Stored& from, i32 n, i32 k) {
    return __ldg(static_cast<const u8*>(from.codes) + n * from.k + k);
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) {
    *reinterpret_cast<uint4*>(tile + slot(row, w)) = unit;
  }
};

// Two codes a byte, lowest nibble first, [n, k / 2].
struct NibblesNk {
  static constexpr i32 kUnitN = 1, kUnitK = 16, kLanesN = 4;
  using Unit = uint2;
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    return __ldg(reinterpret_cast<const uint2*>(static_cast<const u8*>(from.codes) + (n * from.k + k) / 2));
  }
  static __device__ __forceinline__ u32 code(const Stored& from, i32 n, i32 k) {
    return __ldg(static_cast<const u8*>(from.codes) + (n * from.k + k) / 2) >> k % 2 * 4 & 15;
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) {
    const uint2 low = spread(unit.x), high = spread(unit.y);
    *reinterpret_cast<uint4*>(tile + slot(row, w)) = make_uint4(low.x, low.y, high.x, high.y);
  }
};

// GPTQ: words of consecutive k, lowest bits first, [k * kBits / 32, n].
template <i32 kBits>
struct Gptq {
  static constexpr i32 kUnitN = 1, kUnitK = 32 / kBits, kLanesN = 8;
  using Unit = u32;
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    return __ldg(static_cast<const u32*>(from.codes) + k / kUnitK * from.n + n);
  }
  static __device__ __forceinline__ u32 code(const Stored& from, i32 n, i32 k) {
    return load(from, n, k) >> k % kUnitK * kBits & ((1 << kBits) - 1);
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) {
    if constexpr (kBits == 8)
      tile[slot(row, w)] = unit;
    else
      *reinterpret_cast<uint2*>(tile + slot(row, w)) = spread(unit);
  }
};

// AWQ: words of eight consecutive n in the order 0 2 4 6 1 3 5 7, lowest nibble first, [k, n / 8].
struct Awq {
  static constexpr i32 kUnitN = 8, kUnitK = 4, kLanesN = 8;
  struct Unit {
    u32 v[4];
  };
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    const u32* at = static_cast<const u32*>(from.codes) + (k * from.n + n) / 8;
    Unit unit;
#pragma unroll
    for (i32 r = 0; r < 4; ++r) unit.v[r] = __ldg(at + r * (from.n / 8));
    return unit;
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) {
    u32 even[4], odd[4];
#pragma unroll
    for (i32 r = 0; r < 4; ++r) even[r] = unit.v[r] & 0x0f0f0f0f, odd[r] = unit.v[r] >> 4 & 0x0f0f0f0f;
    transpose(even);  // nibbles 0 2 4 6 hold the columns 0 4 1 5
    transpose(odd);   // nibbles 1 3 5 7 hold the columns 2 6 3 7
#pragma unroll
    for (i32 c = 0; c < 4; ++c) {
      const i32 column = (c & 1) * 4 + (c >> 1);
      tile[slot(row + column, w)] = even[c];
      tile[slot(row + column + 2, w)] = odd[c];
    }
  }
};

// Act-order: packed input feature k is the stored one `order[k]`. Each code is read by itself, from rows that the caches
// hold for the others.
template <class Source>
struct Ordered {
  static constexpr i32 kUnitN = 1, kUnitK = 4, kLanesN = 8;
  using Unit = u32;
  static __device__ __forceinline__ Unit load(const Stored& from, i32 n, i32 k) {
    Unit unit = 0;
#pragma unroll
    for (i32 r = 0; r < kUnitK; ++r) unit |= Source::code(from, n, __ldg(from.order + k + r)) << 8 * r;
    return unit;
  }
  static __device__ __forceinline__ void store(u32* tile, i32 row, i32 w, Unit unit) { tile[slot(row, w)] = unit; }
};

// Fills the tile whose first code is (n0, k0); padding lies beyond the weight's edges.
template <class Source>
__device__ __forceinline__ void read_tile(u32* tile, const Stored& from, u32 padding, i32 n0, i32 k0) {
  constexpr i32 kLanesK = 32 / Source::kLanesN;
  constexpr i32 kSpanN = Source::kLanesN * Source::kUnitN, kSpanK = kLanesK * Source::kUnitK;  // of a warp
  constexpr i32 kAcross = kTile / kSpanN, kUnits = kAcross * (kTile / kSpanK) / kWarps;
  static_assert(kUnits * kWarps == kAcross * (kTile / kSpanK), "warps share the tile evenly");
  constexpr bool kAlongK = Source::kUnitN == 1 && Source::kUnitK == 16;  // neighbours in memory are neighbours along k
  const i32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const i32 lane_n = kAlongK ? lane / kLanesK : lane % Source::kLanesN;
  const i32 lane_k = kAlongK ? lane % kLanesK : lane / Source::kLanesN;

  typename Source::Unit units[kUnits];
#pragma unroll
  for (i32 u = 0; u < kUnits; ++u) {
    const i32 span = u * kWarps + warp;
    const i32 n = n0 + span % kAcross * kSpanN + lane_n * Source::kUnitN;
    const i32 k = k0 + span / kAcross * kSpanK + lane_k * Source::kUnitK;
    if (n < from.n && k < from.k) units[u] = Source::load(from, n, k);
  }
#pragma unroll
  for (i32 u = 0; u < kUnits; ++u) {
    const i32 span = u * kWarps + warp;
    const i32 row = span % kAcross * kSpanN + lane_n * Source::kUnitN;
    const i32 column = span / kAcross * kSpanK + lane_k * Source::kUnitK;
    if (n0 + row < from.n && k0 + column < from.k) {
      Source::store(tile, row, column / 4, units[u]);
    } else {
#pragma unroll
      for (i32 r = 0; r < Source::kUnitN; ++r)
#pragma unroll
        for (i32 w = 0; w < Source::kUnitK / 4; ++w) tile[slot(row + r, column / 4 + w)] = padding;
    }
  }
}

// The codes of row `row` at columns c + {2t, 2t + 8, 2t + 1, 2t + 9}, one a byte; `w` is the word of column c.
__device__ __forceinline__ u32 gather(const u32* tile, i32 row, i32 w, i32 t) {
  const u16* halves = reinterpret_cast<const u16*>(tile);
  const u32 low = halves[2 * slot(row, w + t / 2) + t % 2], high = halves[2 * slot(row, w + t / 2 + 2) + t % 2];
  return __byte_perm(low, high, 0x5140);
}

// Nonzero if one of four codes is out of range: above 15, or NaN of e4m3 where that is asked.
template <i32 kBits>
__device__ __forceinline__ u32 wrong(u32 codes, i32 refuse_nan) {
  if constexpr (kBits == 4) return codes & 0xf0f0f0f0;
  return refuse_nan ? ((codes & 0x7f7f7f7f) + 0x01010101) & 0x80808080 : 0;
}

// Writes the blocks of the tile that the weight has; `to` is the first.
template <i32 kBits>
__device__ __forceinline__ u32 write_tile(const u32* tile, u32* to, i32 strips, i32 blocks, i64 strip_words,
                                          i32 refuse_nan) {
  constexpr i32 kBlockWords = kStrip * kStrip * kBits / 32;
  constexpr i32 kRuns = kBlockWords / 128;  // of a block: a run is 16 bytes a lane
  const i32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  u32 bad = 0;
#pragma unroll
  for (i32 run = warp; run < kStrips * kStrips * kRuns; run += kWarps) {
    const i32 part = run % kRuns, block = run / kRuns % kStrips, strip = run / kRuns / kStrips;
    if (strip >= strips || block >= blocks) continue;
    const i32 i = kBits == 4 ? part : part / 2, half = kBits == 4 ? 0 : part % 2;
    const i32 row = strip * kStrip + 16 * i + g, w = (block * kStrip + 32 * half) / 4;
    u32 v[4];
#pragma unroll
    for (i32 q = 0; q < 4; ++q) {
      if constexpr (kBits == 4) {  // word j = q: nibbles of the rows g and g + 8 in turn
        const u32 upper = gather(tile, row, w + 4 * q, t), lower = gather(tile, row + 8, w + 4 * q, t);
        bad |= wrong<kBits>(upper | lower, refuse_nan);
        v[q] = upper | lower << 4;
      } else {  // word 2 (j % 2) + h: bytes of the row g + 8 h
        v[q] = gather(tile, row + 8 * (q % 2), w + 4 * (q / 2), t);
        bad |= wrong<kBits>(v[q], refuse_nan);
      }
    }
    u32* at = to + strip * strip_words + block * kBlockWords + part * 128 + lane * 4;
    *reinterpret_cast<uint4*>(at) = make_uint4(v[0], v[1], v[2], v[3]);
  }
  return bad;
}

// A grid of experts * ceil(n64 / 2) * ceil(k64 / 2) CTAs, strips fastest.
template <class Source, i32 kSourceBits, i32 kBits>
__device__ __forceinline__ void pack_codes(const Codes& p) {
  alignas(16) __shared__ u32 tile[kTile * kWords];
  const i32 strips = (p.n + kStrip - 1) / kStrip, blocks = (p.k + kStrip - 1) / kStrip;
  const i32 tiles_n = (strips + kStrips - 1) / kStrips, tiles_k = (blocks + kStrips - 1) / kStrips;
  const i32 tile_n = blockIdx.x % tiles_n, tile_k = blockIdx.x / tiles_n % tiles_k;
  const i64 expert = blockIdx.x / tiles_n / tiles_k;
  const i64 strip_words = static_cast<i64>(blocks) * (kStrip * kStrip * kBits / 32);
  const Stored from = {static_cast<const u8*>(p.source) + expert * p.n * p.k * kSourceBits / 8, p.order, p.n, p.k};
  u32* to = p.packed + (expert * strips + tile_n * kStrips) * strip_words + tile_k * kStrips * (kStrip * kStrip * kBits / 32);

  ptx::wait_for_prerequisites();
  read_tile<Source>(tile, from, p.padding, tile_n * kTile, tile_k * kTile);
  __syncthreads();
  const u32 bad = write_tile<kBits>(tile, to, strips - tile_n * kStrips, blocks - tile_k * kStrips, strip_words, p.refuse_nan);
  if (bad != 0) *p.refused = 1;
}

struct Scales {
  const void* source;       // element (expert, group, column) lies at the sum of their strides
  void* packed;             // [experts,] n64, packed_groups, 64
  i64 expert_stride;        // of the source, in elements, like those that follow
  i64 group_stride;
  i64 column_stride;
  i32 n;                    // output features
  i32 groups;               // of the source
  i32 packed_groups;        // those of the padded k
};

// A grid of experts * n64 * ceil(packed_groups / 64) CTAs, strips fastest. T is as wide as a scale.
template <class T>
__device__ __forceinline__ void pack_scales(const Scales& p) {
  constexpr i32 kPitch = kStrip + 4 / sizeof(T);  // an odd number of words: neither way of writing meets a bank twice
  __shared__ T tile[kStrip * kPitch];
  const i32 strips = (p.n + kStrip - 1) / kStrip, spans = (p.packed_groups + kStrip - 1) / kStrip;
  const i32 strip = blockIdx.x % strips, first = blockIdx.x / strips % spans * kStrip;
  const i64 expert = blockIdx.x / strips / spans;
  const T* source = static_cast<const T*>(p.source) + expert * p.expert_stride;
  T* to = static_cast<T*>(p.packed) + ((expert * strips + strip) * p.packed_groups + first) * kStrip;

  ptx::wait_for_prerequisites();
  const bool columns_first = p.column_stride == 1;
#pragma unroll
  for (i32 at = threadIdx.x; at < kStrip * kStrip; at += kThreads) {
    const i32 column = columns_first ? at % kStrip : at / kStrip, group = columns_first ? at / kStrip : at % kStrip;
    const i32 n = strip * kStrip + column, from = first + group;
    const bool exists = n < p.n && from < p.groups;
    tile[group * kPitch + column] = exists ? source[from * p.group_stride + n * p.column_stride] : T{0};
  }
  __syncthreads();
#pragma unroll
  for (i32 at = threadIdx.x; at < kStrip * kStrip; at += kThreads) {
    const i32 group = at / kStrip, position = at % kStrip;  // position 8 g + 2 i + h holds row 16 i + 8 h + g
    const i32 row = 16 * (position / 2 % 4) + 8 * (position % 2) + position / 8;
    if (first + group < p.packed_groups) to[at] = tile[group * kPitch + row];
  }
}

}  // namespace billhook::pack
