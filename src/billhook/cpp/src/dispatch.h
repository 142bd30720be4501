// Which kernel serves which problem: tables, written when the library was emitted, and their look-up. No CUDA.
#pragma once
#include <cstdint>

namespace billhook {

// One kernel; what is compiled into it, and what a launch of it needs.
struct Kernel {
  const char* name;
  uint32_t types;      // pack_types
  int32_t group_size;  // -1: one scale per output feature
  bool indexed;        // for Mixture-of-Experts layers
  bool grouped;        // those whose rows of A lie in the routing's order
  int32_t target;      // index into kTargets
  int32_t tile_m, tile_n, tile_k;
  int32_t cluster;  // CTAs of a cluster, compiled into the kernel: the grid is a multiple
  int32_t stages_per_cta;  // that are worth a CTA more on a multiprocessor
  int32_t threads;  // of a CTA
  int32_t shared_bytes, workspace_bytes;  // of a CTA: dynamic shared memory, partial sums
  int32_t boxes[2];     // rows of those of each pair of tensor maps of A, further arguments; 0: there is none
  bool rounds_weights;  // scaled weights are rounded to A's type; for error bounds
};

// Rows up to `last`, from those of the range before on.
struct Range {
  int32_t last;
  int32_t kernel;  // index into kKernels
};

// Problems that differ in m alone.
struct ProblemClass {
  uint32_t types;
  int32_t group_size, num_experts, top_k, n, k;
  int32_t first_range, ranges;  // in kRanges
};

// A GPU target and its problem classes, in ascending order of their members.
struct Target {
  int32_t major, minor;
  char suffix;                   // 'a': this chip alone, 'f': this family, ' ': this and later minors
  int32_t first_class, classes;  // in kClasses
};

extern const Kernel kKernels[];
extern const int32_t kKernelCount;
extern const Range kRanges[];
extern const ProblemClass kClasses[];
extern const Target kTargets[];  // the most specific first
extern const int32_t kTargetCount;

struct Problem {
  uint32_t types;
  int32_t group_size, num_experts, top_k, n, k;
  int32_t m;  // rows of A
};

constexpr uint32_t pack_types(uint32_t a, uint32_t b, uint32_t s, uint32_t d) { return a << 24 | b << 16 | s << 8 | d; }

// Whether machine code for a target runs on a GPU of this compute capability.
bool runs_on(const Target& target, int32_t major, int32_t minor);

// The problem's class on a target; null if the target does not serve it.
const ProblemClass* find_class(const Target& target, const Problem& problem);

// The kernel that serves a problem on a GPU of this compute capability; null if none does.
const Kernel* select_kernel(const Problem& problem, int32_t major, int32_t minor);

// As `select_kernel`, but one that takes `block_m` rows at a time: the nearest to what would be selected.
const Kernel* select_kernel_of(int32_t block_m, const Problem& problem, int32_t major, int32_t minor);

// Whether some kernel that `select_kernel_of` may give for these blocks wants the rows of A grouped.
bool may_group(int32_t block_m, const Problem& problem, int32_t major, int32_t minor);

// What a grid is for.
struct Work {
  int32_t tiles_m, strips, blocks;  // tiles along m; blocks of 64 output features and of 64 input features
  bool split_k;                     // CTAs may share an output tile
};

// How many CTAs share the work on a GPU of so many multiprocessors, each of which holds `resident` CTAs of the kernel.
int32_t count_ctas(const Kernel& kernel, const Work& work, int32_t multiprocessors, int32_t resident);

}  // namespace billhook
