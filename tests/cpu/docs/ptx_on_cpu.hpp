// Stands in for docs/kernels/ptx.cuh, so that a step of the ladder runs on the CPU unchanged: each CUDA thread is a fiber, and
// every instruction is modelled by what the PTX ISA says of it. Asynchrony is modelled at its worst: a wgmma reads registers
// and shared memory only when its group is waited for, bulk copies come in any order and at any time after their issue,
// and the order of the threads is random. So data that is overwritten or read too early gives a wrong result, and a wrong count
// of arrivals or bytes gives an error. Not modelled: proxies and memory order (fences do nothing), and time.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

using u32 = unsigned int;
using u64 = unsigned long long;
using bf16 = unsigned short;

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

struct uint4 { u32 x, y, z, w; };
struct float4 { float x, y, z, w; };
struct Index { int x, y, z; };
using std::min;

struct alignas(128) TensorMap {  // the test fills it in: a matrix of 16-bit elements
  const char* base;
  u64 columns, rows, row_bytes, box_columns, box_rows;
};

namespace cpu {

constexpr u32 kBase = 1024;  // where dynamic shared memory begins

struct Barrier { int arrivals, pending; long bytes; u32 phase; };
struct Meeting { int here = 0, past = 0; };  // of threads: how many have come to the next, how many have taken place
struct Multiply { float* d; const u32* a; u64 a_at, b_at; bool add; };
struct Cluster { Meeting meeting; int live = 0; };

struct Cta {
  Index block;
  u32 rank;
  Cluster* cluster;
  std::vector<Cta*> peers;  // of the cluster, by rank
  std::vector<char> shared;
  std::map<u32, Barrier> barriers;
  Meeting meeting;
  std::vector<Meeting> warps;
  int live;
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
};

struct Copy { Cta* cta; u32 to, barrier, ranks; std::vector<char> data; };

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Copy> copies;
inline Thread* self;
inline ucontext_t scheduler;
inline Index grid;
inline std::string error;
inline std::mt19937 dice;

// Ends the run: the scheduler sees `error` and resumes nobody.
inline void fail(const std::string& what) {
  if (error.empty())
    error = "block " + std::to_string(self->cta->block.x) + ", " + std::to_string(self->cta->block.y) + ", thread " +
            std::to_string(self->index.x) + ": " + what;
  swapcontext(&self->context, &scheduler);
}

inline void wait_until(std::function<bool()> ready) {
  self->ready = std::move(ready);
  swapcontext(&self->context, &scheduler);
}

inline void meet(Meeting& meeting, const int& expected) {
  const int mine = meeting.past;
  ++meeting.here;
  wait_until([&meeting, &expected, mine] {
    if (meeting.past == mine && meeting.here >= expected) meeting.here = 0, ++meeting.past;
    return meeting.past != mine;
  });
}

inline char* shared(Cta* cta, u32 at, u32 bytes) {
  if (at < kBase || at - kBase + bytes > cta->shared.size() || at % std::min(bytes, 16u))
    fail("shared memory has no " + std::to_string(bytes) + " bytes at " + std::to_string(at));
  return cta->shared.data() + (at - kBase);
}

inline void settle(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) ++b.phase, b.pending = b.arrivals;
}

inline void arrive(Cta* cta, u32 at, long bytes) {
  if (cta->live == 0) fail("an arrival at a CTA that has exited");
  const auto found = cta->barriers.find(at);
  if (found == cta->barriers.end()) return fail("no barrier at " + std::to_string(at));
  if (found->second.pending-- == 0) fail("one arrival too many");
  found->second.bytes += bytes;
  settle(found->second);
}

inline void copy(u32 to, u32 barrier, u32 ranks, std::vector<char> data) {
  shared(self->cta, to, data.size());
  copies.push_back({self->cta, to, barrier, ranks, std::move(data)});
}

inline u32 swizzle(u32 at) { return at ^ (at >> 7 & 7) << 4; }

inline void land(const Copy& copy) {
  for (Cta* cta : copy.cta->peers) {
    if (!(copy.ranks >> cta->rank & 1)) continue;
    if (cta->live == 0) error = "a copy to a CTA that has exited";
    std::memcpy(cta->shared.data() + (copy.to - kBase), copy.data.data(), copy.data.size());
    Barrier& barrier = cta->barriers.at(copy.barrier);
    barrier.bytes -= copy.data.size();
    settle(barrier);
  }
}

inline float widen(u32 bits) {
  bits <<= 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline bf16 narrow(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Element (row, column) of what a descriptor describes: k contiguous, 128-byte swizzle.
inline float element(Cta* cta, u64 descriptor, int row, int column) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("the descriptor is not of a 128-byte swizzle");
  const u32 start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  bf16 bits;
  std::memcpy(&bits, shared(cta, swizzle(start + row / 8 * eight_rows + row % 8 * 128 + column * 2), 2), 2);
  return widen(bits);
}

// One instruction's 16 rows that belong to the warp whose first thread is `lanes[0]`.
inline void multiply(const std::unique_ptr<Thread>* lanes, const std::vector<const Multiply*>& of) {
  Cta* cta = lanes[0]->cta;
  static float a[16][16], b[128][16];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) {
      const u32* registers = of[row % 8 * 4 + k % 8 / 2]->a;
      a[row][k] = registers ? widen(registers[row / 8 + k / 8 * 2] >> k % 2 * 16 & 0xffff)
                            : element(cta, of[0]->a_at, lanes[0]->index.x / 32 % 4 * 16 + row, k);
    }
  for (int column = 0; column < 128; ++column)
    for (int k = 0; k < 16; ++k) b[column][k] = element(cta, of[0]->b_at, column, k);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 64; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = of[lane]->add ? of[lane]->d[i] : 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      of[lane]->d[i] = sum;
    }
}

inline std::function<void()> body;
inline void enter() {
  body();
  self->done = true;
  --self->cta->live, --self->cta->cluster->live;
  swapcontext(&self->context, &scheduler);
}

template <class... P, size_t... i>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<i...>) {
  kernel(*static_cast<std::decay_t<P>*>(arguments[i])...);
}

struct Launch {
  void** arguments;
  int grid[2], cluster[2], threads, shared_bytes;
  u32 seed;
};

// Runs a grid whose CTAs are all resident. Returns what went wrong, or "".
inline const char* run(const Launch& how) {
  threads.clear(), copies.clear(), error.clear(), dice.seed(how.seed), grid = {how.grid[0], how.grid[1], 1};
  const Index cluster = {how.cluster[0], how.cluster[1], 1};
  const int size = how.threads, shared_bytes = how.shared_bytes;
  std::map<std::pair<int, int>, std::pair<Cluster, std::vector<Cta*>>> clusters;
  std::deque<Cta> ctas;
  for (int y = 0; y < grid.y; ++y)
    for (int x = 0; x < grid.x; ++x) {
      auto& [common, members] = clusters[{x / cluster.x, y / cluster.y}];
      ctas.push_back({{x, y, 0}, u32(y % cluster.y * cluster.x + x % cluster.x), &common, {},
                      std::vector<char>(shared_bytes, char(0xff)), {}, {}, std::vector<Meeting>(size / 32), size});
      members.push_back(&ctas.back());
      common.live += size;
    }
  for (Cta& cta : ctas) cta.peers = clusters[{cta.block.x / cluster.x, cta.block.y / cluster.y}].second;
  for (Cta& cta : ctas)
    for (int i = 0; i < size; ++i) {
      threads.push_back(std::make_unique<Thread>());
      Thread& thread = *threads.back();
      thread.index = {i, 0, 0}, thread.cta = &cta, thread.ready = [] { return true; };
      thread.stack.reset(new char[1 << 15]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get(), thread.context.uc_stack.ss_size = 1 << 15;
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
    if (!copies.empty() && (!next || dice() % 16 == 0)) {
      std::swap(copies[dice() % copies.size()], copies.back());
      land(copies.back());
      copies.pop_back();
      continue;
    }
    if (!next || steps > 100000000) return (error = "deadlock").c_str();
    self = next;
    swapcontext(&scheduler, &next->context);
    live -= next->done;
  }
  if (error.empty() && !copies.empty()) error = "a copy was still under way";
  return error.c_str();
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

DEVICE void __syncthreads() { cpu::meet(cpu::self->cta->meeting, cpu::self->cta->live); }
DEVICE u32 __float_as_uint(float v) { u32 bits; std::memcpy(&bits, &v, 4); return bits; }
DEVICE float __uint_as_float(u32 bits) { float v; std::memcpy(&v, &bits, 4); return v; }
DEVICE u32 __byte_perm(u32 a, u32 b, u32 selector) {
  u32 out = 0;
  for (int i = 0; i < 4; ++i) out |= u32((u64(b) << 32 | a) >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}

DEVICE u32 shared_memory() { return cpu::kBase; }
DEVICE void store_shared(u32 to, uint4 v) { std::memcpy(cpu::shared(cpu::self->cta, to, 16), &v, 16); }
DEVICE uint4 load_shared(u32 from) { uint4 v; std::memcpy(&v, cpu::shared(cpu::self->cta, from, 16), 16); return v; }
DEVICE u32 load_shared_u32(u32 from) { u32 v; std::memcpy(&v, cpu::shared(cpu::self->cta, from, 4), 4); return v; }
DEVICE bf16 to_bf16(float v) { return cpu::narrow(v); }
DEVICE void fence_proxy_async() {}
DEVICE void wgmma_fence() {}
DEVICE void wgmma(float (&d)[64], u64 a, u64 b, bool add) { cpu::self->issued.push_back({d, nullptr, a, b, add}); }
DEVICE void wgmma(float (&d)[64], const u32 (&a)[4], u64 b, bool add) { cpu::self->issued.push_back({d, a, 0, b, add}); }
DEVICE void wgmma_commit() { cpu::self->groups.push_back(std::move(cpu::self->issued)), cpu::self->issued.clear(); }

// The lanes of a warp wait together; the last one to come computes for all.
template <int pending>
DEVICE void wgmma_wait() {
  cpu::Thread* me = cpu::self;
  cpu::Meeting& meeting = me->cta->warps[me->index.x / 32];
  const int mine = meeting.past;
  if (++meeting.here == 32) {
    const auto* lanes = &cpu::threads[0];
    while (lanes[0].get() != me) ++lanes;
    lanes -= me->index.x % 32;
    while (lanes[0]->groups.size() > pending) {
      for (size_t i = 0; i < lanes[0]->groups.front().size(); ++i) {
        std::vector<const cpu::Multiply*> of;
        for (int lane = 0; lane < 32; ++lane) of.push_back(&lanes[lane]->groups.at(0).at(i));
        cpu::multiply(lanes, of);
      }
      for (int lane = 0; lane < 32; ++lane) lanes[lane]->groups.pop_front();
    }
    meeting.here = 0, ++meeting.past;
  }
  cpu::wait_until([&meeting, mine] { return meeting.past != mine; });
}

DEVICE int warp_index() { return threadIdx.x / 32; }
DEVICE void mbarrier_init(u32 at, u32 arrivals) {
  cpu::shared(cpu::self->cta, at, 8);
  cpu::self->cta->barriers[at] = {int(arrivals), int(arrivals), 0, 0};
}
DEVICE void fence_barrier_init() {}
DEVICE void mbarrier_arrive(u32 barrier) { cpu::arrive(cpu::self->cta, barrier, 0); }
DEVICE void mbarrier_arrive_expect(u32 barrier, u32 bytes) { cpu::arrive(cpu::self->cta, barrier, bytes); }
DEVICE void mbarrier_arrive(u32 barrier, u32 rank, bool yes) {
  if (yes) cpu::arrive(cpu::self->cta->peers.at(rank), barrier, 0);
}
DEVICE void mbarrier_wait(u32 at, u32 parity) {
  const cpu::Barrier& barrier = cpu::self->cta->barriers.at(at);
  cpu::wait_until([&barrier, parity] { return (barrier.phase & 1) != parity; });
}

DEVICE void tma_load_multicast(u32 to, const TensorMap& map, int x, int y, u32 barrier, u32 ranks) {
  if (map.box_columns != 64 || to % 1024) cpu::fail("the swizzle needs rows of 128 bytes that begin at multiples of 1024");
  std::vector<char> data(map.box_rows * 128, 0);
  for (u32 row = 0; row < map.box_rows; ++row)
    for (u32 column = 0; column < 64; ++column)
      if (x + column < map.columns && y + row < map.rows)
        std::memcpy(&data[cpu::swizzle(row * 128 + column * 2)], map.base + (y + row) * map.row_bytes + (x + column) * 2, 2);
  cpu::copy(to, barrier, ranks, std::move(data));
}
DEVICE void tma_load(u32 to, const TensorMap& map, int x, int y, u32 barrier) {
  tma_load_multicast(to, map, x, y, barrier, 1 << cpu::self->cta->rank);
}
DEVICE void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) cpu::fail("a bulk copy is not aligned");
  const char* data = static_cast<const char*>(from);
  cpu::copy(to, barrier, 1u << cpu::self->cta->rank, {data, data + bytes});
}

template <u32 mask, u32 bits>
DEVICE u32 and_or(u32 v) { return (v & mask) | bits; }
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {  // the float is exact for the products and sums of the ladder
  const auto one = [](u32 a, u32 b, u32 c) { return cpu::narrow(std::fma(cpu::widen(a), cpu::widen(b), cpu::widen(c))); };
  return one(a & 0xffff, b & 0xffff, c & 0xffff) | u32(one(a >> 16, b >> 16, c >> 16)) << 16;
}

template <int registers>
DEVICE void release_registers() {}
template <int registers>
DEVICE void claim_registers() {}
DEVICE u32 cluster_rank() { return cpu::self->cta->rank; }
DEVICE void cluster_sync() { cpu::meet(cpu::self->cta->cluster->meeting, cpu::self->cta->cluster->live); }

// What is not written yet is read as such, or waited for: a reader that only polls would hide a deadlock.
DEVICE float4 load_relaxed(const float4* from) {
  const auto written = [from] { return __float_as_uint(from->w) != 0xffffffffu; };
  if (!written() && cpu::dice() % 4 != 0) cpu::wait_until(written);
  return *from;
}
DEVICE void store_relaxed(float4* to, float4 v) { *to = v; }
