// Threads, CTAs, shared memory, barriers and copies, and how a grid of them runs.
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

struct Index { unsigned x, y, z; };

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
  u64 ends;  // whether a box past the last row is an error
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
  int copies = 0;              // cp.async so far
  std::vector<int> committed;  // how many at the end of each of their groups
  std::set<int> in_flight;     // those that have not landed
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
  const Index block = self->cta->block;
  if (error.empty())
    error = "CTA " + std::to_string(block.x) + ", " + std::to_string(block.y) + ", thread " + std::to_string(self->index.x) +
            ": " + what;
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
