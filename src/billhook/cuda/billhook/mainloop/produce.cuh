// The producer side of the Machete mainloop: one warpgroup fills the stages of the pipeline. SM90.
//
// Codes, scales and zero points of a stage are contiguous runs, one per strip: bulk copies. Activations of dense layers, and of
// MoE layers whose rows have been grouped by expert, come as boxes of a 2-D tensor (TMA), swizzled as wgmma reads them; the CTAs
// of a cluster, which compute the same tokens, fetch a part each and send it to all. Rows that are looked up (MoE) are gathered
// by cp.async, by the whole warpgroup.
//
// A thread takes some hundred cycles to ask for a few copies: where tiles are small, each warp asks for those of one kind.
#pragma once
#include "billhook/mainloop/load.cuh"
#include "billhook/ptx/grid.cuh"
#include "billhook/ptx/memory.cuh"
#include "billhook/ptx/warpgroup.cuh"
#include "billhook/schedule/partial.cuh"
#include "billhook/schedule/waves.cuh"

namespace billhook {

// A CUtensorMap: 2-D, boxes of 128 bytes of features x some tokens of A, 128-byte swizzle.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// Of boxes of tile_m / cluster tokens, and of as many as are left at the end of m: what a box has beyond A takes longer to fill
// with zeros than rows of A to copy.
struct TensorMaps {
  TensorMap whole, rest;
};

#if __CUDA_ARCH__ >= 900
template <class C>
struct Producer {
  using T = typename C::Output;
  using Weight = typename C::Weight;
  using Scale = typename C::Scale;

  const GemmParams& p;
  const Waves& waves;
  const TensorMaps* maps;  // of A; null where rows are gathered
  const u32 shared;
  const i32 rank, thread, warp;  // of this CTA in its cluster; of this thread in the warpgroup, and its warp there
  Segment at;
  i32 expert;  // of the tile
  i32 slot = 0;
  u32 parity = 1;  // a fresh barrier lets pass who waits for the phase before its first

  // Fills the stages of all segments. Weights do not depend on the kernel before: where a warp asks for them alone, it does not
  // wait for that.
  template <class Tiles>
  __device__ __forceinline__ void run(Tiles walk) {
    if constexpr (C::gathers) {
      gather_all(walk);
    } else if constexpr (C::one_asks) {
      ptx::wait_for_prerequisites();
      each_tile(walk, [&] { each_stage(Codes(*this), Rows(*this), Activations(*this)); });
    } else if (warp == 0) {
      each_tile(walk, [&] { each_stage(Codes(*this)); });
    } else if (warp == 1) {
      if constexpr (C::has_rows) each_tile(walk, [&] { each_stage(Rows(*this)); });
    } else {
      ptx::wait_for_prerequisites();
      each_tile(walk, [&] { each_stage(Activations(*this)); });
    }
  }

  // Waits until all stages have been multiplied.
  __device__ __forceinline__ void drain() {
    for (i32 s = 0; s < C::stages; ++s, next_slot()) wait_empty();
  }

 private:
  __device__ __forceinline__ u32 full() const { return shared + C::full_at + 8 * slot; }
  __device__ __forceinline__ u32 stage() const { return shared + slot * C::stage_bytes; }
  __device__ __forceinline__ void wait_empty() const { ptx::mbarrier_wait(shared + C::empty_at + 8 * slot, parity); }

  __device__ __forceinline__ void next_slot() {
    if (++slot == C::stages) {
      slot = 0;
      parity ^= 1;
    }
  }

  // Calls `work` for each segment. The expert of the next one is looked up meanwhile.
  template <class Tiles, class Work>
  __device__ __forceinline__ void each_tile(Tiles walk, Work work) {
    Segment next;
    if (!walk.next(next)) return;
    i32 next_expert = expert_of<C>(p, next.tile_m);
    for (bool more = true; more;) {
      at = next, expert = next_expert;
      more = walk.next(next);
      next_expert = expert_of<C>(p, next.tile_m);
      work();
    }
  }

  // Requests some kinds of data for all stages of a segment.
  template <class... Kind>
  __device__ __forceinline__ void each_stage(Kind... kind) {
    for (i32 k_stage = at.stage; k_stage < at.stage + at.count; ++k_stage, next_slot()) {
      wait_empty();
      (kind.request(k_stage), ...);
    }
    if constexpr (C::fetches_parts) {
      if (at.stage > 0 || at.count == waves.stages) return;
      const i32 last = waves.last_owner(at.tile);
      for (i32 first = 0; first < C::quads; first += C::batch)
        for (i32 other = waves.worker + 1; other <= last; ++other, next_slot()) {
          wait_empty();
          (kind.request_part(other, first), ...);
        }
    }
  }

  // The strips of a segment that exist.
  struct Strips {
    i32 count;
    u32 first;  // among those of all experts

    __device__ __forceinline__ explicit Strips(const Producer& of) {
      const i32 strip = (of.at.tile_n * C::cluster + of.rank) * C::strips;
      count = of.expert < 0 ? 0 : max(0, min(C::strips, of.p.strips - strip));
      first = of.expert * of.p.strips + strip;
    }
  };

  // Of a stage's activations, as far as they come by TMA: tokens past the end of m are left as they are, since what they hold
  // reaches no other token's sums.
  __device__ __forceinline__ u32 activation_bytes() const {
    constexpr u32 all = C::gathers ? 0 : C::codes_at;
    return C::indexed ? all : min(C::tile_m, p.m - at.tile_m * C::tile_m) * (all / C::tile_m);
  }

  // Groups of scales, or of zero points, that a stage holds.
  static __device__ __forceinline__ i32 first_group(i32 k_stage) {
    return C::channel_scales ? 0 : k_stage * C::blocks * kStrip / C::group_size;
  }
  __device__ __forceinline__ i32 groups(i32 k_stage) const {
    return C::channel_scales ? 1 : min(C::groups_per_stage, p.groups - first_group(k_stage));
  }

  // Codes, and the count of all bytes that the stage's barrier waits for.
  struct Codes {
    const Producer& of;
    const Strips strips{of};
    const u64 pitch = static_cast<u64>(of.p.blocks) * block_bytes<Weight>;  // from strip to strip
    const char* from = reinterpret_cast<const char*>(of.p.codes) + strips.first * pitch;
    const u32 activations = of.activation_bytes();

    __device__ __forceinline__ explicit Codes(const Producer& of) : of(of) {}

    __device__ __forceinline__ void request(i32 k_stage) const {
      const i32 block = k_stage * C::blocks;
      const u32 run = min(C::blocks, of.p.blocks - block) * block_bytes<Weight>;
      u32 row = 0;
      if constexpr (!C::channel_scales) row += of.groups(k_stage) * row_bytes<Scale>;
      if constexpr (has_zeros<Weight>) row += of.groups(k_stage) * row_bytes<T>;
      ptx::mbarrier_arrive_expect(of.full(), strips.count * (run + row) + activations);
      const u32 to = of.stage() + C::codes_at;
      const char* const codes = from + static_cast<u64>(block) * block_bytes<Weight>;
#pragma unroll
      for (i32 s = 0; s < C::strips; ++s)
        if (s < strips.count)
          ptx::bulk_copy(to + s * (C::blocks * block_bytes<Weight>), codes + s * pitch, run, of.full());
    }

    __device__ __forceinline__ void request_part(i32, i32) const { ptx::mbarrier_arrive_expect(of.full(), C::batch_bytes); }
  };

  // Group scales and zero points.
  struct Rows {
    const Producer& of;
    const Strips strips{of};
    const u64 first = static_cast<u64>(strips.first) * of.p.groups;

    __device__ __forceinline__ explicit Rows(const Producer& of) : of(of) {}

    __device__ __forceinline__ void request(i32 k_stage) const {
      const i32 groups = of.groups(k_stage);
      const u64 row = first + first_group(k_stage);
#pragma unroll
      for (i32 s = 0; s < C::strips; ++s) {
        if (s >= strips.count) continue;
        if constexpr (!C::channel_scales) copy<Scale>(C::scales_at, C::groups_per_stage, of.p.scales, row, groups, s);
        if constexpr (has_zeros<Weight>) copy<T>(C::zeros_at, C::zero_groups, of.p.zeros, row, groups, s);
      }
      arrive();
    }

    __device__ __forceinline__ void request_part(i32, i32) const { arrive(); }

   private:
    // Who only looked on where there is nothing to ask for might fall behind by two phases of a barrier, which look the same.
    __device__ __forceinline__ void arrive() const {
      if constexpr (C::askers > 1) ptx::mbarrier_arrive(of.full(), true);
    }

    template <class Element>
    __device__ __forceinline__ void copy(i32 base, i32 room, const void* from, u64 row, i32 groups, i32 s) const {
      ptx::bulk_copy(of.stage() + base + s * (room * row_bytes<Element>),
                     static_cast<const char*>(from) + (row + static_cast<u64>(s) * of.p.groups) * row_bytes<Element>,
                     groups * row_bytes<Element>, of.full());
    }
  };

  // This CTA's part of the tokens, for all CTAs of the cluster.
  struct Activations {
    static constexpr i32 rows = C::tile_m / C::cluster;
    const Producer& of;
    const i32 y = of.at.tile_m * C::tile_m + of.rank * rows;
    const TensorMap* const map = C::indexed || y + rows <= of.p.m ? &of.maps->whole : &of.maps->rest;

    __device__ __forceinline__ explicit Activations(const Producer& of) : of(of) {}

    __device__ __forceinline__ void request(i32 k_stage) const {
      if (C::cluster > 1 && !C::indexed && y >= of.p.m) return;
#pragma unroll
      for (i32 block = 0; block < C::tile_k / C::chunk; ++block) {
        const u32 to = of.stage() + C::activations_at + (block * C::tile_m + of.rank * rows) * 128;
        const i32 x = k_stage * C::tile_k + block * C::chunk;
        if constexpr (C::cluster > 1)
          ptx::tensor_copy_multicast(to, map, x, y, of.full(), (1 << C::cluster) - 1);
        else
          ptx::tensor_copy(to, map, x, y, of.full());
      }
    }

    // A batch of what another worker computed of this tile (epilogue/fragments.cuh), once it has written the last of it. What this
    // copy may still find missing, the epilogue waits for.
    __device__ __forceinline__ void request_part(i32 other, i32 first) const {
      constexpr i32 row = C::team * 128;  // words of four for each accumulator
      const u32x4* const part = part_of<C>(of.p.partials, other, of.rank);
      if (first == 0) {
        while (is_partly_empty(ptx::load_relaxed(part + C::quads * row - 1))) {
        }
        ptx::fence_proxy_async_global();
      }
      ptx::bulk_copy(of.stage(), part + first * row, C::batch_bytes, of.full());
    }
  };

  // Which rows of A the tokens of a tile are, and its expert: asked for while the tile before is copied, since memory answers
  // late, and kept in a table, since a token's eight threads want to know.
  struct Lookup {
    static constexpr i32 count = (C::tile_m + 127) / 128;
    i32 expert, ids[count];

    __device__ __forceinline__ Lookup(const Producer& of, const Segment& at) : expert(expert_of<C>(of.p, at.tile_m)) {
#pragma unroll
      for (i32 i = 0; i < count; ++i) {
        const i32 token = i * 128 + of.thread;
        ids[i] = token < C::tile_m ? row_id<C>(of.p, at.tile_m, token) : of.p.m;
      }
    }

    __device__ __forceinline__ void keep(const Producer& of) const {
#pragma unroll
      for (i32 i = 0; i < count; ++i) {
        const i32 token = i * 128 + of.thread, row = ids[i] < of.p.m ? ids[i] / of.p.top_k : -1;
        if (token < C::tile_m) ptx::store_shared_u32(of.shared + C::lookup_at + token * 4, static_cast<u32>(row));
      }
    }
  };

  template <class Tiles>
  __device__ __forceinline__ void gather_all(Tiles walk) {
    constexpr i32 barrier = 1 + C::consumer_warpgroups;
    Segment next;
    if (!walk.next(next)) return;
    Lookup lookup(*this, next);
    for (bool more = true; more;) {
      at = next, expert = lookup.expert;
      ptx::sync_some<128>(barrier);  // the table has been read
      lookup.keep(*this);
      ptx::sync_some<128>(barrier);
      more = walk.next(next);
      lookup = Lookup(*this, next);
      gather();
    }
  }

  static constexpr i32 row_step = 128 / 8;  // eight threads copy a row of 64 features
  static constexpr i32 rows_per_thread = C::tile_m / row_step;

  // Rows that pad a block are left as they are: what they hold reaches no other row's sums.
  __device__ __forceinline__ void gather() {
    const i32 chunk = thread % 8;
    const char* rows[rows_per_thread];  // this thread's chunk of them in A
    u32 there = 0;
#pragma unroll
    for (i32 i = 0; i < rows_per_thread; ++i) {
      const i32 row = static_cast<i32>(ptx::load_shared_u32(shared + C::lookup_at + (thread / 8 + i * row_step) * 4));
      rows[i] = static_cast<const char*>(p.a) + static_cast<i64>(max(row, 0)) * (p.lda * 2) + chunk * 16;
      there |= (row >= 0 ? 1u : 0u) << i;
    }
    if (expert < 0) there = 0;
    const Codes codes(*this);
    const Rows scales(*this);
    const u32 place = C::activations_at + thread / 8 * 128 + (chunk ^ thread / 8 % 8) * 16;
    for (i32 k_stage = at.stage; k_stage < at.stage + at.count; ++k_stage, next_slot()) {
      wait_empty();
      if (thread == 0) codes.request(k_stage);
      if (C::has_rows && thread == 32) scales.request(k_stage);
#pragma unroll
      for (i32 block = 0; block < C::blocks; ++block) {
        const i32 first = k_stage * C::tile_k + block * kStrip, k = first + chunk * 8;
        const u32 to = stage() + place + block * (C::tile_m * 128), bytes = k < p.k ? 16 : 0;
        const i64 offset = k < p.k ? first * 2 : 0;
#pragma unroll
        for (i32 i = 0; i < rows_per_thread; ++i)
          if (there >> i & 1) ptx::cp_async_16(to + i * row_step * 128, rows[i] + offset, bytes);
      }
      ptx::mbarrier_arrive_copied(full());
    }
  }
};
#endif

}  // namespace billhook
