// The other instructions, each by its name in PTX.
// Source: PTX ISA 9.0, "Instruction Set".
#pragma once
#include "numbers.hpp"

namespace cpu {

// ---- wgmma

// Row `row` of what a descriptor describes, from its byte `at` on: k contiguous, 128-byte swizzle.
inline u32 element(Cta* cta, u64 descriptor, int row, int at, int bytes) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("the descriptor is not of a 128-byte swizzle");
  const u32 start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  u32 bits = 0;
  std::memcpy(&bits, shared(cta, swizzle(start + row / 8 * eight_rows + row % 8 * 128 + at), bytes), bytes);
  return bits;
}

// The 16 rows of a warp. Of A, lane 4 g + t holds rows g (registers 0 and 2) and g + 8 (1 and 3); registers 2 and 3 hold the
// upper half of k.
template <class A, class B, class Sum>
void multiply(Cta* cta, int warp, Multiply* const* lanes) {
  constexpr int k = A::width == 16 ? 16 : 32, bytes = 32 / k, each = 4 / bytes;  // of an element; elements of a register
  static double a[16][k], b[256][k];
  const Multiply& first = *lanes[0];
  for (int lane = 1; lane < 32; ++lane)
    if (lanes[lane]->b_at != first.b_at || lanes[lane]->a_at != first.a_at || lanes[lane]->add != first.add ||
        lanes[lane]->columns != first.columns)
      return fail("the lanes of a warp do not issue the same wgmma");
  for (int row = 0; row < 16; ++row)
    for (int i = 0; i < k; ++i) {
      const int half = i / (k / 2), within = i % (k / 2);
      const u32 held = lanes[row % 8 * 4 + within / each]->a[row / 8 + half * 2];
      a[row][i] = A::value(first.from_registers ? held >> within % each * A::width & ((1u << A::width) - 1)
                                                : element(cta, first.a_at, warp * 16 + row, i * bytes, bytes));
    }
  for (int column = 0; column < first.columns; ++column)
    for (int i = 0; i < k; ++i) b[column][i] = B::value(element(cta, first.b_at, column, i * bytes, bytes));
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < first.columns / 2; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      Sum& d = *static_cast<Sum*>(lanes[lane]->sums[i]);
      Sum sum = first.add ? d : 0;
      for (int j = 0; j < k; ++j) sum += static_cast<Sum>(a[row][j] * b[column][j]);
      d = sum;
    }
}

// A: four registers, or a descriptor. `flags`: of floats, neither A nor B is negated (1, 1); of 16-bit types, what lies in
// shared memory is not transposed (0).
template <int n, int k, class D, class A, class B, class Sum, class From, class... Flags>
void wgmma_mma_async_sync_aligned(std::array<Sum*, n / 2> d, From a, u64 b, bool add, Flags... flags) {
  constexpr bool from_registers = !std::is_integral_v<From>;
  constexpr int plain[] = {1, 1, 0, 0}, count = std::is_same_v<Sum, i32> ? 0 : A::width == 8 ? 2 : from_registers ? 3 : 4;
  static_assert(std::is_same_v<Sum, typename D::Type> && k * A::width == 256 && sizeof...(Flags) == count, "wgmma");
  const std::array<int, count> given = {flags...};
  if (!std::equal(given.begin(), given.end(), plain)) return fail("wgmma with flags that the model lacks");
  Multiply one = {n, multiply<A, B, Sum>, {}, from_registers, {}, 0, b, add};
  if constexpr (from_registers)
    for (int i = 0; i < 4; ++i) one.a[i] = *a[i];
  else
    one.a_at = a;
  std::copy(d.begin(), d.end(), one.sums);
  self->issued.push_back(one);
}

inline void wgmma_fence_sync_aligned() {}
inline void wgmma_commit_group_sync_aligned() { self->groups.push_back(std::move(self->issued)), self->issued.clear(); }

inline void wgmma_wait_group_sync_aligned(size_t pending) {
  together(*self, [pending](Thread* const* lanes) {
    while (lanes[0]->groups.size() > pending) {
      for (size_t i = 0; i < lanes[0]->groups.front().size(); ++i) {
        Multiply* of[32];
        for (int lane = 0; lane < 32; ++lane) of[lane] = &lanes[lane]->groups.at(0).at(i);
        of[0]->run(self->cta, self->index.x / 32 % 4, of);
      }
      for (int lane = 0; lane < 32; ++lane) lanes[lane]->groups.pop_front();
    }
  });
}

// ---- mma

// D[m x 8] = A[m x k] B[k x 8] + C by a warp. Of A, lane 4 g + t holds row g (and g + 8), `each` columns from `each` t on in a
// register; where k fills two, the second holds the second half of k. Of B likewise column g; of D rows g and columns 2 t, 2 t + 1.
template <class T, int m, int k, class Sum, size_t count_d, size_t count_a, size_t count_b>
void mma(std::array<Sum*, count_d> d, std::array<const u32*, count_a> a, std::array<const u32*, count_b> b,
         std::array<const Sum*, count_d> c) {
  constexpr int each = 32 / T::width, halves = k / (4 * each), heights = m / 8;
  static_assert(count_d == 2 * heights && count_a == halves * heights && count_b == halves, "mma");
  struct Lane { u32 a[count_a], b[count_b]; Sum d[count_d]; } mine;
  for (size_t i = 0; i < count_a; ++i) mine.a[i] = *a[i];
  for (size_t i = 0; i < count_b; ++i) mine.b[i] = *b[i];
  for (size_t i = 0; i < count_d; ++i) mine.d[i] = *c[i];
  together(mine, [](Lane* const* lanes) {
    static double left[m][k], right[8][k];
    const auto part = [](u32 word, int i) { return T::value(word >> i % each * T::width & ((1u << T::width) - 1)); };
    for (int i = 0; i < k; ++i) {
      const int half = i / (4 * each), t = i / each % 4;
      for (int row = 0; row < m; ++row) left[row][i] = part(lanes[row % 8 * 4 + t]->a[half * heights + row / 8], i);
      for (int column = 0; column < 8; ++column) right[column][i] = part(lanes[column * 4 + t]->b[half], i);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (size_t v = 0; v < count_d; ++v) {
        const int row = lane / 4 + v / 2 * 8, column = lane % 4 * 2 + v % 2;
        for (int i = 0; i < k; ++i) lanes[lane]->d[v] += static_cast<Sum>(left[row][i] * right[column][i]);
      }
  });
  for (size_t i = 0; i < count_d; ++i) *d[i] = mine.d[i];
}

#define MMA(NAME, T, M, K, SUM)                                                                          \
  template <class... Operands>                                                                           \
  void mma_sync_aligned_##NAME(std::array<SUM*, M / 4> d, const Operands&... operands) {                 \
    mma<T, M, K, SUM>(d, operands...);                                                                   \
  }
MMA(m16n8k8_row_col_f32_f16_f16_f32, f16, 16, 8, float)
MMA(m16n8k16_row_col_f32_f16_f16_f32, f16, 16, 16, float)
MMA(m16n8k16_row_col_f32_bf16_bf16_f32, bf16, 16, 16, float)
MMA(m16n8k32_row_col_f32_e4m3_e4m3_f32, e4m3, 16, 32, float)
MMA(m16n8k32_row_col_s32_s8_s8_s32, s8, 16, 32, i32)
MMA(m8n8k16_row_col_s32_s8_s8_s32, s8, 8, 16, i32)
#undef MMA

// ---- shared and global memory

inline void ld_shared_u32(u32& d, u32 from) { d = load<u32>(from); }
inline void st_shared_u32(u32 to, u32 v) { std::memcpy(shared(self->cta, to, 4), &v, 4); }
inline void st_shared_f32(u32 to, float v) { std::memcpy(shared(self->cta, to, 4), &v, 4); }
template <class T>
void load_four(std::array<T*, 4> d, u32 from) {
  const auto v = load<std::array<T, 4>>(from);
  for (int i = 0; i < 4; ++i) *d[i] = v[i];
}
inline void ld_shared_v4_u32(std::array<u32*, 4> d, u32 from) { load_four(d, from); }
inline void ld_shared_v4_f32(std::array<float*, 4> d, u32 from) { load_four(d, from); }
inline void ld_shared_v2_f32(std::array<float*, 2> d, u32 from) {
  const float* const v = reinterpret_cast<const float*>(shared(self->cta, from, 8));
  *d[0] = v[0], *d[1] = v[1];
}
inline void st_shared_v4_u32(u32 to, std::array<const u32*, 4> v) {
  char* const words = shared(self->cta, to, 16);
  for (int i = 0; i < 4; ++i) std::memcpy(words + 4 * i, v[i], 4);
}

// Lane l gives the address of row l % 8 of matrix l / 8, which held fragments have as a column.
inline void stmatrix_sync_aligned_m8n8_x4_trans_shared_b16(u32 to, std::array<const u32*, 4> r) {
  struct Lane { u32 to, r[4]; } mine = {to, {*r[0], *r[1], *r[2], *r[3]}};
  together(mine, [](Lane* const* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix)
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 2; ++i) {
          const u16 v = lanes[lane]->r[matrix] >> 16 * i;
          const int column = lane % 4 * 2 + i, row = lane / 4;
          std::memcpy(shared(self->cta, lanes[matrix * 8 + column]->to, 16) + row * 2, &v, 2);
        }
  });
}

// Lane l gives the address of row l % 8 of matrix l / 8; register i holds two columns of row l / 4 of matrix i.
inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(std::array<u32*, 4> d, u32 from) {
  struct Lane { u32 from, d[4]; } mine = {from, {}};
  together(mine, [](Lane* const* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(&lanes[lane]->d[matrix], shared(self->cta, lanes[matrix * 8 + lane / 4]->from, 16) + lane % 4 * 4, 4);
  });
  for (int i = 0; i < 4; ++i) *d[i] = mine.d[i];
}

// What is not written yet is read as such, or waited for: a reader that only polls would hide a deadlock.
template <class T>
void load_relaxed(std::array<T*, 4> d, const void* from) {
  const volatile u32* const words = static_cast<const u32*>(from);
  const auto written = [words] { return words[0] != ~0u && words[1] != ~0u && words[2] != ~0u && words[3] != ~0u; };
  if (!written() && dice() % 4 != 0) wait_until(written);
  for (int i = 0; i < 4; ++i) {
    const u32 word = words[i];
    std::memcpy(d[i], &word, 4);
  }
}

template <class T>
void store_relaxed(void* to, std::array<const T*, 4> v) {
  volatile u32* const words = static_cast<u32*>(to);
  u32 held[4];
  for (int i = 0; i < 4; ++i) std::memcpy(held + i, v[i], 4);
  handed_over += held[0] != ~0u;
  for (u32 i = 0, first = dice(); i < 4; ++i) {
    words[(first + i) % 4] = held[(first + i) % 4];
    yield_now_and_then(8);
  }
}

inline void ld_relaxed_gpu_global_v4_u32(std::array<u32*, 4> d, const void* from) { load_relaxed(d, from); }
inline void ld_relaxed_gpu_global_v4_f32(std::array<float*, 4> d, const void* from) { load_relaxed(d, from); }
inline void st_relaxed_gpu_global_v4_u32(void* to, std::array<const u32*, 4> v) { store_relaxed(to, v); }
inline void st_relaxed_gpu_global_v4_f32(void* to, std::array<const float*, 4> v) { store_relaxed(to, v); }

// ---- copies and barriers

inline void cp_async_cg_shared_global(u32 to, const void* from, int size, u32 bytes) {
  Thread* const mine = self;
  std::vector<char> data(size, 0);
  if (bytes > 0) std::memcpy(data.data(), global(from, bytes), bytes);
  shared(self->cta, to, size);
  const int number = mine->copies++;
  mine->in_flight.insert(number);
  events.push_back({nullptr, [=] {
    std::memcpy(mine->cta->shared + (to - kBase), data.data(), data.size());
    mine->in_flight.erase(number);
  }});
}
inline void cp_async_commit_group() { self->committed.push_back(self->copies); }
inline void cp_async_wait_group(size_t pending) {
  Thread* const mine = self;
  if (mine->committed.size() <= pending) return;
  const int end = mine->committed[mine->committed.size() - pending - 1];
  wait_until([=] { return mine->in_flight.empty() || *mine->in_flight.begin() >= end; });
}
inline void cp_async_mbarrier_arrive_noinc_shared_b64(u32 barrier) {
  Thread* const mine = self;
  const int before = mine->copies;
  events.push_back({[=] { return mine->in_flight.empty() || *mine->in_flight.begin() >= before; }, [=] {
    self = mine;
    arrive(mine->cta, barrier, 0);
  }});
}

inline void mbarrier_init_shared_b64(u32 at, u32 arrivals) {
  shared(self->cta, at, 8);
  self->cta->barriers[at] = {int(arrivals), int(arrivals), 0, 0};
}

struct Nothing {};
inline void mbarrier_arrive_shared_b64(Nothing, u32 at) { arrive(self->cta, at, 0); }
inline void mbarrier_arrive_expect_tx_shared_b64(Nothing, u32 at, u32 bytes) { arrive(self->cta, at, bytes); }
inline void mapa_shared_cluster_u32(u32& d, u32 at, u32 rank) { d = at + (rank + 1) * kRank; }
inline void mbarrier_arrive_shared_cluster_b64(Nothing, u32 at) { arrive(self->cta->peers.at(at / kRank - 1), at % kRank, 0); }
inline void mbarrier_arrive_release_cluster_shared_cluster_b64(Nothing, u32 at) { mbarrier_arrive_shared_cluster_b64({}, at); }
inline void mbarrier_try_wait_parity_shared_b64(bool& done, u32 at, u32 parity) {
  const Barrier& barrier = self->cta->barriers.at(at);
  wait_until([&barrier, parity] { return (barrier.phase & 1) != parity; });
  done = true;
}

inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) return fail("a bulk copy is not aligned");
  if (bytes == 0) return fail("a bulk copy of nothing");
  const char* data = global(from, bytes);
  copy(to, barrier, 1u << self->cta->rank, {data, data + bytes});
}

inline void tensor_box(u32 to, const void* of, std::array<const i32*, 2> at, u32 barrier, u32 ranks) {
  const TensorMap& map = *static_cast<const TensorMap*>(of);
  const i32 x = *at[0], y = *at[1];
  if (to % 1024) return fail("the swizzle needs a place that is a multiple of 1024");
  if (map.ends && y + map.box_rows > map.rows) return fail("a box reaches beyond the last row");
  std::vector<char> data(map.box_rows * 128, 0);
  const u32 box_columns = 128 / map.element_bytes;
  for (u32 row = 0; row < map.box_rows; ++row)
    for (u32 column = 0; column < box_columns; ++column)
      if (x + column < map.columns && y + row < map.rows)
        std::memcpy(&data[swizzle(row * 128 + column * map.element_bytes)],
                    map.base + (y + row) * map.row_bytes + (x + column) * map.element_bytes, map.element_bytes);
  copy(to, barrier, ranks, std::move(data));
}
inline void cp_async_bulk_tensor_2d_shared_cluster_global_mbarrier_complete_tx_bytes(
    u32 to, const void* map, std::array<const i32*, 2> at, u32 barrier) {
  tensor_box(to, map, at, barrier, 1u << self->cta->rank);
}
inline void cp_async_bulk_tensor_2d_shared_cluster_global_mbarrier_complete_tx_bytes_multicast_cluster(
    u32 to, const void* map, std::array<const i32*, 2> at, u32 barrier, u16 ranks) {
  tensor_box(to, map, at, barrier, ranks);
}

inline void prefetch_tensormap(const void*) {}
inline void fence_mbarrier_init_release_cluster() {}
inline void fence_proxy_async() {}
inline void fence_proxy_async_shared() {}
inline void fence_proxy_async_global() {}

// ---- threads

inline void bar_sync(i32 id, int expected) {
  if (expected % 32 || id < 1 || id > 15) return fail("no such barrier");
  Meeting& meeting = self->cta->named[id];
  const int mine = meeting.past;
  if (++meeting.here == expected) meeting.here = 0, ++meeting.past;
  wait_until([&meeting, mine] { return meeting.past != mine; });
}
inline u32 cluster_ctarank() { return self->cta->rank; }
template <class T>
void mov_u32(T& d, u32 a) { d = a; }
inline void barrier_cluster_arrive_release() {}
inline void barrier_cluster_arrive_release_aligned() {}
inline void barrier_cluster_wait_acquire() { meet(self->cta->cluster->meeting, self->cta->cluster->live); }
inline void barrier_cluster_wait_acquire_aligned() { barrier_cluster_wait_acquire(); }
inline void setmaxnreg_inc_sync_aligned_u32(int) {}
inline void setmaxnreg_dec_sync_aligned_u32(int) {}
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() {}

}  // namespace cpu
