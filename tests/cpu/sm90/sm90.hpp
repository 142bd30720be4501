// A model of SM90, so that kernels run on the CPU as they are, their PTX translated by ptx_to_cpp.py: each CUDA thread is a
// fiber, and every instruction does what the PTX ISA says of it. Asynchrony is modelled at its worst: a wgmma reads shared
// memory and its sums only when its group is waited for, copies land in any order and at any time after their issue, words
// of a vector that CTAs exchange become visible one by one, and the order of the threads is random. So data that is
// overwritten or read too early gives a wrong result; a wrong count of arrivals or bytes, an address outside an array and a
// deadlock give an error. Not modelled: proxies and memory order (fences do nothing), the fewer bits that sums of e4m3 have,
// and time.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

struct Index { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
using std::max;
using std::min;

namespace cpu {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;

constexpr u32 kBase = 1024;         // where dynamic shared memory begins
constexpr u32 kRank = 1 << 24;      // distance of the CTAs of a cluster in its shared memory, from 1 on
constexpr size_t kStack = 1 << 16;  // bytes of a thread's stack

struct TensorMap {  // the test fills it in: a matrix, and the boxes of it that are copied
  const char* base;
  u64 columns, rows, row_bytes, element_bytes, box_rows;
};

struct Range { const char *begin, *end; };
struct Barrier { int arrivals, pending; long bytes; u32 phase; };
struct Meeting { int here = 0, past = 0; };  // of threads: how many have come to the next, how many have taken place
struct Warp { Meeting meeting; void* lanes[32]; };
struct Cluster { Meeting meeting; int live = 0; };

struct Cta {
  Index block;
  u32 rank;
  Cluster* cluster;
  std::vector<Cta*> peers;  // of the cluster, by rank
  char* shared;
  size_t shared_bytes;
  std::map<u32, Barrier> barriers;
  Meeting meeting;
  std::map<int, Meeting> named;
  std::vector<Warp> warps;
  int live;
};

// One wgmma as a lane issued it.
struct Multiply {
  int columns;
  void (*run)(Cta*, int warp, Multiply* const*);  // for the lanes of a warp
  void* sums[128];
  bool from_registers;  // A
  u32 a[4];
  u64 a_at, b_at;
  bool add;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  Cta* cta;
  bool done = false;
  std::function<bool()> ready;
  std::vector<Multiply> issued;
  std::deque<std::vector<Multiply>> groups;
  int copies = 0;           // cp.async so far
  std::set<int> in_flight;  // those that have not landed
};

struct Event { std::function<bool()> possible; std::function<void()> happen; };

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Event> events;
inline std::vector<Range> readable;  // global memory that copies may read
inline Thread* self;
inline ucontext_t scheduler;
inline Index grid;
inline std::string error;
inline std::mt19937 dice;
inline long handed_over;  // vectors of partial sums written in this run

// Ends the run: the scheduler sees `error` and resumes nobody.
inline void fail(const std::string& what) {
  if (error.empty())
    error = "CTA " + std::to_string(self->cta->block.x) + ", " + std::to_string(self->cta->block.y) + ", thread " + std::to_string(self->index.x) + ": " + what;
  swapcontext(&self->context, &scheduler);
}

inline void wait_until(std::function<bool()> ready) {
  self->ready = std::move(ready);
  swapcontext(&self->context, &scheduler);
}

inline void yield_now_and_then(u32 one_in) {
  if (dice() % one_in == 0) wait_until([] { return true; });
}

inline void meet(Meeting& meeting, const int& expected) {
  const int mine = meeting.past;
  ++meeting.here;
  wait_until([&meeting, &expected, mine] {
    if (meeting.past == mine && meeting.here >= expected) meeting.here = 0, ++meeting.past;
    return meeting.past != mine;
  });
}

// The lanes of a warp come together; the last one does `what` for all, given what each of them brought.
template <class Mine, class What>
void together(Mine& mine, What what) {
  Warp& warp = self->cta->warps[self->index.x / 32];
  warp.lanes[self->index.x % 32] = &mine;
  const int past = warp.meeting.past;
  if (++warp.meeting.here == 32) {
    what(reinterpret_cast<Mine* const*>(warp.lanes));
    warp.meeting.here = 0, ++warp.meeting.past;
  }
  wait_until([&warp, past] { return warp.meeting.past != past; });
}

// ---- memory

inline char* shared(Cta* cta, u32 at, u32 bytes) {
  if (at < kBase || at - kBase + bytes > cta->shared_bytes || at % std::min(bytes, 16u))
    fail("shared memory has no " + std::to_string(bytes) + " bytes at " + std::to_string(at));
  return cta->shared + (at - kBase);
}

template <class T>
T load(u32 from) {
  T v;
  std::memcpy(&v, shared(self->cta, from, sizeof(T)), sizeof(T));
  return v;
}

inline const char* global(const void* from, u64 bytes) {
  const char* const begin = static_cast<const char*>(from);
  for (const Range& range : readable)
    if (begin >= range.begin && begin + bytes <= range.end) return begin;
  fail("a copy from outside the arrays");
  return nullptr;
}

template <int alignment>
char* dynamic_shared() {
  static_assert(alignment <= kBase, "alignment");
  return self->cta->shared;
}

template <class First, class... Rest>
std::array<First*, 1 + sizeof...(Rest)> registers(First& first, Rest&... rest) {
  return {&first, &rest...};
}

// ---- barriers

inline void settle(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) ++b.phase, b.pending = b.arrivals;
}

inline void arrive(Cta* cta, u32 at, long bytes) {
  if (cta->live == 0) fail("an arrival at a CTA that has exited");
  const auto found = cta->barriers.find(at);
  if (found == cta->barriers.end()) return fail("no barrier at " + std::to_string(at));
  if (found->second.pending-- == 0) return fail("one arrival too many");
  found->second.bytes += bytes;
  settle(found->second);
}

// Data for shared memory, at some time, of the CTAs of the cluster named in `ranks`, and their barriers told of its bytes.
inline void copy(u32 to, u32 barrier, u32 ranks, std::vector<char> data) {
  shared(self->cta, to, data.size());
  for (Cta* cta : self->cta->peers) {
    if (!(ranks >> cta->rank & 1)) continue;
    events.push_back({nullptr, [=] {
      if (cta->live == 0) error = "a copy to a CTA that has exited";
      std::memcpy(cta->shared + (to - kBase), data.data(), data.size());
      Barrier& told = cta->barriers.at(barrier);
      told.bytes -= data.size();
      settle(told);
    }});
  }
}

inline u32 swizzle(u32 at) { return at ^ (at >> 7 & 7) << 4; }

// ---- numbers

struct f32 { using Type = float; };
struct s32 { using Type = i32; };

inline float as_float(u32 bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline u32 as_bits(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// To nearest even, with `precision` bits, in multiples of 2^smallest.
inline double round_to(double v, int precision, int smallest) {
  int exponent;
  std::frexp(v, &exponent);
  if (!std::isfinite(v) || v == 0) return v;
  const int unit = std::max(exponent - precision, smallest);
  return std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
}

struct bf16 {
  static constexpr int width = 16;
  static double value(u32 bits) { return as_float(bits << 16); }
  static u32 bits(double v) { return as_bits(static_cast<float>(round_to(v, 8, -133))) >> 16; }
};

struct f16 {
  static constexpr int width = 16;
  static double value(u32 bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double v = exponent == 31 ? (mantissa ? NAN : INFINITY) : std::ldexp(exponent ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
    return bits >> 15 ? -v : v;
  }
  static u32 bits(double v) {
    const u32 sign = std::signbit(v) ? 0x8000 : 0;
    const double size = std::fabs(round_to(v, 11, -24));
    if (std::isnan(v)) return 0x7fff;
    if (size >= 65536) return sign | 0x7c00;
    if (size < std::ldexp(1, -14)) return sign | static_cast<u32>(std::ldexp(size, 24));
    int exponent;
    const double fraction = std::frexp(size, &exponent);
    return sign | (static_cast<u32>(std::ldexp(fraction, 11)) + (exponent + 13 << 10));
  }
};

struct e4m3 {
  static constexpr int width = 8;
  static double value(u32 bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if ((bits & 127) == 127) return NAN;
    const double v = std::ldexp(exponent ? 8 + mantissa : mantissa, std::max(exponent, 1) - 10);
    return bits >> 7 ? -v : v;
  }
};

struct s8 {
  static constexpr int width = 8;
  static double value(u32 bits) { return static_cast<signed char>(bits); }
};

// a * b + c, rounded once; the product is exact in double, and their sum must be.
template <class T>
u32 fma_one(u32 a, u32 b, u32 c) {
  const double product = T::value(a) * T::value(b), addend = T::value(c), sum = product + addend;
  if (std::isfinite(sum) && (sum - product) - addend != 0) fail("the model's double does not hold a sum exactly");
  return T::bits(sum);
}

template <class T>
u32 fma_pair(u32 a, u32 b, u32 c) {
  return fma_one<T>(a & 0xffff, b & 0xffff, c & 0xffff) | fma_one<T>(a >> 16, b >> 16, c >> 16) << 16;
}

inline void fma_rn_f16x2(u32& d, u32 a, u32 b, u32 c) { d = fma_pair<f16>(a, b, c); }
inline void fma_rn_bf16x2(u32& d, u32 a, u32 b, u32 c) { d = fma_pair<bf16>(a, b, c); }
inline void cvt_rn_f16x2_f32(u32& d, float high, float low) { d = f16::bits(low) | f16::bits(high) << 16; }
inline void cvt_rn_bf16x2_f32(u32& d, float high, float low) { d = bf16::bits(low) | bf16::bits(high) << 16; }
inline void cvt_rn_bf16_f32(u16& d, float a) { d = bf16::bits(a); }
inline void cvt_f32_f16(float& d, u16 a) { d = static_cast<float>(f16::value(a)); }
inline void max_bf16x2(u32& d, u32 a, u32 b) {
  const auto one = [](u32 a, u32 b) { return bf16::value(a) > bf16::value(b) ? a : b; };
  d = one(a & 0xffff, b & 0xffff) | one(a >> 16, b >> 16) << 16;
}
inline void mov_b32(std::array<u16*, 2> halves, u32 a) { *halves[0] = a, *halves[1] = a >> 16; }
inline void and_b32(u32& d, u32 a, u32 b) { d = a & b; }
inline void setp_ne_s32(bool& d, i32 a, i32 b) { d = a != b; }
inline void setp_ne_u32(bool& d, u32 a, u32 b) { d = a != b; }
inline void lop3_b32(u32& d, u32 a, u32 b, u32 c, int table) {
  d = 0;
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
}

// ---- wgmma

// Row `row` of what a descriptor describes, from its byte `at` on: k contiguous, 128-byte swizzle.
inline u32 element(Cta* cta, u64 descriptor, int row, int at, int bytes) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("the descriptor is not of a 128-byte swizzle");
  const u32 start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  u32 bits = 0;
  std::memcpy(&bits, shared(cta, swizzle(start + row / 8 * eight_rows + row % 8 * 128 + at), bytes), bytes);
  return bits;
}

// The 16 rows of a warp, of `columns` columns. Of A, lane 4 g + t holds rows g (registers 0 and 2) and g + 8 (1 and 3); registers 2
// and 3 are the upper half of k.
template <class A, class B, class Sum>
void multiply(Cta* cta, int warp, Multiply* const* lanes) {
  constexpr int k = A::width == 16 ? 16 : 32, bytes = 32 / k, each = 4 / bytes;  // of an element; elements of a register
  static double a[16][k], b[256][k];
  const Multiply& first = *lanes[0];
  for (int lane = 1; lane < 32; ++lane)
    if (lanes[lane]->b_at != first.b_at || lanes[lane]->a_at != first.a_at || lanes[lane]->add != first.add || lanes[lane]->columns != first.columns)
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

// ---- what headers have for kernels of other families

#define LACKS(instruction) \
  template <class... T>    \
  void instruction(const T&...) { fail("the model lacks " #instruction); }
LACKS(cp_async_commit_group)
LACKS(cp_async_wait_group)
LACKS(ldmatrix_sync_aligned_m8n8_x4_shared_b16)
LACKS(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32)
LACKS(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32)
#undef LACKS

// ---- a launch

struct Launch {  // the test fills it in
  void** arguments;
  const Range* ranges;
  int count, grid[2], cluster[2], threads, shared_bytes;
  u32 seed;
};

inline std::function<void()> body;
inline void enter() {
  body();
  if (!self->issued.empty() || !self->groups.empty()) fail("a wgmma that nobody waited for");
  self->done = true;
  --self->cta->live, --self->cta->cluster->live;
  swapcontext(&self->context, &scheduler);
}

// Lets something happen that can; false if nothing can.
inline bool happen() {
  const size_t first = events.empty() ? 0 : dice() % events.size();
  for (size_t i = 0; i < events.size(); ++i) {
    Event& event = events[(first + i) % events.size()];
    if (event.possible && !event.possible()) continue;
    const Event chosen = std::move(event);
    event = std::move(events.back());
    events.pop_back();
    chosen.happen();
    return true;
  }
  return false;
}

extern "C" long count_handed_over() { return handed_over; }

// Runs a grid whose CTAs are all resident. Returns what went wrong, or "".
inline const char* run(const Launch& how) {
  threads.clear(), events.clear(), error.clear(), dice.seed(how.seed), handed_over = 0;
  readable.assign(how.ranges, how.ranges + how.count), grid = {u32(how.grid[0]), u32(how.grid[1]), 1};
  const size_t apart = (how.shared_bytes + 1023) / 1024 * 1024;
  std::vector<char> memory(grid.x * grid.y * apart + 1024, char(0xff));
  char* place = memory.data() + 1024 - reinterpret_cast<uintptr_t>(memory.data()) % 1024;
  std::map<std::pair<u32, u32>, std::pair<Cluster, std::vector<Cta*>>> clusters;
  std::deque<Cta> ctas;
  const auto cluster_of = [&](Index at) -> auto& { return clusters[{at.x / how.cluster[0], at.y / how.cluster[1]}]; };
  for (u32 y = 0; y < grid.y; ++y)
    for (u32 x = 0; x < grid.x; ++x, place += apart) {
      auto& [common, members] = cluster_of({x, y, 0});
      ctas.push_back({{x, y, 0}, y % how.cluster[1] * how.cluster[0] + x % how.cluster[0], &common, {}, place,
                      size_t(how.shared_bytes), {}, {}, {}, std::vector<Warp>(how.threads / 32), how.threads});
      members.push_back(&ctas.back());
      common.live += how.threads;
    }
  for (Cta& cta : ctas) cta.peers = cluster_of(cta.block).second;
  for (Cta& cta : ctas)
    for (int i = 0; i < how.threads; ++i) {
      threads.push_back(std::make_unique<Thread>());
      Thread& thread = *threads.back();
      thread.index = {u32(i), 0, 0}, thread.cta = &cta, thread.ready = [] { return true; };
      thread.stack.reset(new char[kStack]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get(), thread.context.uc_stack.ss_size = kStack;
      makecontext(&thread.context, enter, 0);
    }

  size_t live = threads.size();
  for (long steps = 0; live > 0 && error.empty(); ++steps) {
    const size_t first = dice() % threads.size();
    Thread* next = nullptr;
    for (size_t i = 0; i < threads.size() && !next; ++i) {
      Thread* thread = threads[(first + i) % threads.size()].get();
      if (!thread->done && thread->ready()) next = thread;
    }
    if ((!next || dice() % 16 == 0) && happen()) continue;
    if (!next || steps > 100000000) return (error = "deadlock").c_str();
    self = next;
    swapcontext(&scheduler, &next->context);
    live -= next->done;
  }
  if (error.empty() && !events.empty()) error = "a copy was still under way";
  return error.c_str();
}

template <class... P, size_t... i>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<i...>) {
  kernel(*static_cast<std::decay_t<P>*>(arguments[i])...);
}

template <class... P>
const char* launch(void (*kernel)(P...), const Launch& how) {
  body = [=] { call(kernel, how.arguments, std::index_sequence_for<P...>{}); };
  return run(how);
}

}  // namespace cpu

#define threadIdx (cpu::self->index)
#define blockIdx (cpu::self->cta->block)
#define gridDim (cpu::grid)
inline constexpr cpu::Nothing _;

template <class T>
T __shfl_sync(unsigned, T v, int from) {
  T got;
  struct Lane { T v, *got; } mine = {v, &got};
  cpu::together(mine, [from](Lane* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) *lanes[lane]->got = lanes[from]->v;
  });
  return got;
}
inline void __syncwarp() {}
inline void __syncthreads() { cpu::meet(cpu::self->cta->meeting, cpu::self->cta->live); }
inline unsigned __float_as_uint(float v) { return cpu::as_bits(v); }
inline float __uint_as_float(unsigned bits) { return cpu::as_float(bits); }
inline unsigned long long __cvta_generic_to_shared(const void* at) {
  return static_cast<const char*>(at) - cpu::self->cta->shared + cpu::kBase;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
