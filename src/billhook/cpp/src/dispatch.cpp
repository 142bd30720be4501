#include "dispatch.h"

#include <algorithm>
#include <tuple>

namespace billhook {
namespace {

template <class T>  // ProblemClass or Problem
auto key(const T& of) {
  return std::tie(of.types, of.group_size, of.num_experts, of.top_k, of.n, of.k);
}

// Whether a kernel does the same as `like`, in blocks of `block_m` rows.
bool stands_in(const Kernel& one, const Kernel& like, int32_t block_m) {
  return one.tile_m == block_m && one.target == like.target && one.types == like.types &&
         one.group_size == like.group_size && one.indexed == like.indexed;
}

}  // namespace

bool runs_on(const Target& target, int32_t major, int32_t minor) {
  return target.major == major && (target.suffix == 'a' ? target.minor == minor : target.minor <= minor);
}

const ProblemClass* find_class(const Target& target, const Problem& problem) {
  const ProblemClass* const first = kClasses + target.first_class;
  const ProblemClass* const end = first + target.classes;
  const ProblemClass* const found = std::lower_bound(
      first, end, problem, [](const ProblemClass& one, const Problem& other) { return key(one) < key(other); });
  return found != end && key(*found) == key(problem) ? found : nullptr;
}

const Kernel* select_kernel(const Problem& problem, int32_t major, int32_t minor) {
  for (int32_t i = 0; i < kTargetCount; ++i) {
    if (!runs_on(kTargets[i], major, minor)) continue;
    const ProblemClass* const found = find_class(kTargets[i], problem);
    if (found == nullptr) continue;
    const Range* const first = kRanges + found->first_range;
    const Range* const last = first + found->ranges - 1;  // serves all that is beyond it, too
    const Range* const range =
        std::lower_bound(first, last, problem.m, [](const Range& one, int32_t m) { return one.last < m; });
    return kKernels + range->kernel;
  }
  return nullptr;
}

const Kernel* select_kernel_of(int32_t block_m, const Problem& problem, int32_t major, int32_t minor) {
  const Kernel* const like = select_kernel(problem, major, minor);
  if (like == nullptr || like->tile_m == block_m) return like;
  const Kernel* nearest = nullptr;
  for (const Kernel* one = kKernels; one != kKernels + kKernelCount; ++one) {
    if (!stands_in(*one, *like, block_m)) continue;
    if (one->tile_n == like->tile_n && one->tile_k == like->tile_k) return one;
    if (nearest == nullptr) nearest = one;
  }
  return nearest;
}

bool may_group(int32_t block_m, const Problem& problem, int32_t major, int32_t minor) {
  const Kernel* const like = select_kernel(problem, major, minor);
  return like != nullptr && std::any_of(kKernels, kKernels + kKernelCount, [&](const Kernel& one) {
           return one.grouped && stands_in(one, *like, block_m);
         });
}

int32_t count_ctas(const Kernel& kernel, const Work& work, int32_t multiprocessors, int32_t resident) {
  const auto divide_up = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  // CTAs of a cluster lie side by side along n and work as one.
  const int32_t tiles = work.tiles_m * divide_up(work.strips, kernel.tile_n / 64 * kernel.cluster);
  const int32_t stages = tiles * divide_up(work.blocks, kernel.tile_k / 64);
  // No more than run at once or than there are pieces; fewer where each would compute too few stages
  // (families.ctas_per_sm).
  const int32_t per_sm = std::min(resident, std::max(1, stages / (kernel.stages_per_cta * multiprocessors)));
  return std::min(work.split_k ? stages : tiles, per_sm * multiprocessors / kernel.cluster) * kernel.cluster;
}

}  // namespace billhook
