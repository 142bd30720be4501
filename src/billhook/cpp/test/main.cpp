// Runs every kernel of the library that this GPU can run on random problems, and compares with a reference in double.
//
// Usage: billhook_test [SEED]. One line per problem; the error is a fraction of the bound that docs/numerics.md derives.
// Outputs begin as NaN, with rows and columns behind them that must stay so. Every output must have been written; a sample
// of rows and columns is compared. Exit code: 0 all within bounds, 1 some not, 2 nothing could be run.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

#include "device.h"
#include "dispatch.h"
#include "reference.h"

namespace {

using namespace test;
using billhook::ProblemClass;

constexpr int kLargestM = 2048;
constexpr int kSampledRows = 12, kSampledColumns = 24;
constexpr int kMargin = 16;             // elements behind a row of D, and rows behind D, that must stay NaN
constexpr uint16_t kPoison = 0xffff;    // a NaN in both 16-bit types

BillhookType type_at(const ProblemClass& one, int shift) { return static_cast<BillhookType>(one.types >> shift & 0xff); }

// A weight of one problem class, on both sides.
struct Layer {
  ProblemClass of;
  bool moe;
  BillhookType a, b, s, d;
  Weight weight;
  Device<uint8_t> codes, scales, zeros;
  std::vector<float> global;
  Device<float> global_scales;

  Layer(const ProblemClass& one, Random& random)
      : of(one), moe(one.num_experts > 0), a(type_at(one, 24)), b(type_at(one, 16)), s(type_at(one, 8)), d(type_at(one, 0)),
        weight(b, s, d, one.n, one.k, one.group_size, std::max(one.num_experts, 1), random),
        codes(pack_codes(weight)), scales(pack_scales(weight)), zeros(pack_zeros(weight)),
        global(s == BILLHOOK_E4M3FN && !weight.folded() ? weight.experts : 0, 0.5f), global_scales(global) {}
};

std::vector<uint16_t> draw(size_t count, BillhookType type, Random& random) {
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = static_cast<uint16_t>(random.number(type));
  return values;
}

// Factors from `least` to twice that.
std::vector<float> draw_scales(size_t count, float least, Random& random) {
  std::vector<float> values(count);
  for (float& value : values) value = least * (1 + random.weight());
  return values;
}

// Numbers of a type as they lie in memory.
std::vector<uint8_t> stored(const std::vector<uint16_t>& values, BillhookType type) {
  return bits_of(type) == 16 ? bytes_of(values) : std::vector<uint8_t>(values.begin(), values.end());
}

std::vector<int> sample(int end, int count, Random& random) {
  std::set<int> chosen{0, end - 1};
  while (static_cast<int>(chosen.size()) < std::min(count, end)) chosen.insert(random.below(end));
  return {chosen.begin(), chosen.end()};
}

const billhook::Kernel& kernel_called(const std::string& name) {
  return *std::find_if(billhook::kKernels, billhook::kKernels + billhook::kKernelCount,
                       [&](const billhook::Kernel& one) { return one.name == name; });
}

// One problem: its operands on both sides.
struct Problem {
  const Layer& layer;
  int m, rows, ldd;  // rows of A, of D
  std::vector<uint16_t> a, bias;
  std::vector<int> experts;  // of each row of D
  std::vector<float> token_scales, channel_scales, topk_weights;
  bool whole_tiles;

  Problem(const Layer& of, int m_, Random& random)
      : layer(of), m(m_), rows(m_ * std::max(of.of.top_k, 1)), ldd(of.of.n + kMargin),
        a(draw(static_cast<size_t>(m) * of.of.k, of.a, random)), whole_tiles(random.below(2)) {
    if (random.below(2)) bias = draw(static_cast<size_t>(of.weight.experts) * of.of.n, of.d, random);
    if (is_eight_bit_activation(of.a)) {
      token_scales = draw_scales(m, 1.0f / 64, random);
      if (of.weight.folded() || random.below(2))
        channel_scales = draw_scales(static_cast<size_t>(of.weight.experts) * of.of.n, 0.5f, random);
    }
    if (!of.moe) return;
    for (int row = 0; row < rows; ++row) experts.push_back(random.below(of.of.num_experts));
    if (random.below(2))
      for (int row = 0; row < rows; ++row) topk_weights.push_back(random.weight());
  }

  Exact exact(const Column& column, int row, int n) const {
    const int expert = layer.moe ? experts[row] : 0;
    const size_t token = row / std::max(layer.of.top_k, 1), channel = static_cast<size_t>(expert) * layer.of.n + n;
    Exact sum = column.dot(layer.a, a.data() + token * layer.of.k, token_scales.empty() ? 1 : token_scales[token]);
    if (!channel_scales.empty()) sum.multiply(channel_scales[channel]);
    if (!layer.global.empty()) sum.multiply(layer.global[expert]);
    if (!bias.empty()) sum.add(value_of(layer.d, bias[channel]));
    if (!topk_weights.empty()) sum.multiply(topk_weights[row]);
    return sum;
  }
};

// What a launch left behind.
struct Result {
  const char* kernel = "";
  std::vector<uint16_t> d;  // with its margins
  bool workspace_is_clear = false;
};

size_t largest_workspace = 0;  // what billhook_load said

// Asks for a workspace, multiplies, and looks whether the workspace is as before: all ones.
template <class Gemm>
void multiply(const Gemm& gemm, BillhookStatus (*find_kernel)(const Gemm*, const char**),
              BillhookStatus (*find_workspace)(const Gemm*, size_t*),
              BillhookStatus (*start)(const Gemm*, void*, size_t, cudaStream_t), Result* result) {
  require(find_kernel(&gemm, &result->kernel), "finding the kernel");
  size_t bytes = 0;
  require(find_workspace(&gemm, &bytes), result->kernel);
  if (bytes > largest_workspace)
    throw std::runtime_error(std::string(result->kernel) + " needs more than billhook_load said");
  const Device<uint8_t> workspace(bytes);
  require(billhook_clear_workspace(workspace.data(), bytes, nullptr), "billhook_clear_workspace");
  require(start(&gemm, workspace.data(), bytes, nullptr), result->kernel);
  require(cudaDeviceSynchronize(), result->kernel);
  const std::vector<uint8_t> left = workspace.host();
  result->workspace_is_clear = std::all_of(left.begin(), left.end(), [](uint8_t byte) { return byte == 0xff; });
}

Result run(const Problem& problem) {
  const Layer& layer = problem.layer;
  const ProblemClass& of = layer.of;
  const Device<uint8_t> a(stored(problem.a, layer.a));
  const Device<uint16_t> bias(problem.bias);
  const Device<uint16_t> d(std::vector<uint16_t>(static_cast<size_t>(problem.rows + kMargin) * problem.ldd, kPoison));
  const Device<float> token_scales(problem.token_scales), channel_scales(problem.channel_scales);
  const Device<float> topk_weights(problem.topk_weights);
  BillhookMoeGemm moe{};
  BillhookGemm& p = moe.gemm;
  p.a = a.data(), p.codes = layer.codes.data(), p.scales = layer.scales.data(), p.zeros = layer.zeros.data();
  p.channel_scales = channel_scales.data(), p.token_scales = token_scales.data();
  p.global_scales = layer.global_scales.data(), p.bias = bias.data(), p.d = d.data();
  p.m = problem.m, p.n = of.n, p.k = of.k, p.ldd = problem.ldd, p.group_size = of.group_size;
  p.a_type = layer.a, p.b_type = layer.b, p.s_type = layer.s, p.d_type = layer.d;
  p.whole_tiles = problem.whole_tiles;

  Result result;
  if (!layer.moe) {
    multiply(p, billhook_gemm_kernel, billhook_gemm_workspace, billhook_gemm, &result);
    result.d = d.host();
    return result;
  }
  moe.num_experts = of.num_experts, moe.top_k = of.top_k, moe.topk_weights = topk_weights.data();
  require(billhook_moe_block_m(&moe, &moe.block_m), "billhook_moe_block_m");
  const int blocks = billhook_route_blocks(problem.rows, of.num_experts, moe.block_m);
  const Device<int32_t> topk_ids(problem.experts), ids(static_cast<size_t>(blocks) * moe.block_m);
  const Device<int32_t> experts(blocks), length(1);
  const BillhookRoute route{topk_ids.data(), problem.rows,   of.num_experts, moe.block_m,
                            ids.data(),      experts.data(), length.data()};
  require(billhook_route(&route, nullptr), "billhook_route");
  size_t grouped_bytes = 0;
  require(billhook_moe_grouped_bytes(&moe, &grouped_bytes), "billhook_moe_grouped_bytes");
  const Device<uint8_t> grouped(std::vector<uint8_t>(grouped_bytes, 0xff));  // NaN
  moe.grouped = grouped.data(), moe.grouped_bytes = grouped_bytes;
  moe.sorted_token_ids = ids.data(), moe.expert_ids = experts.data(), moe.num_tokens_padded = length.data();
  multiply(moe, billhook_moe_gemm_kernel, billhook_moe_gemm_workspace, billhook_moe_gemm, &result);
  result.d = d.host();
  return result;
}

// Counts outputs that were not written, and elements behind them that were.
size_t count_misplaced(const Problem& problem, const std::vector<uint16_t>& d) {
  size_t wrong = 0;
  for (size_t at = 0; at < d.size(); ++at) {
    const bool inside = at / problem.ldd < static_cast<size_t>(problem.rows) &&
                        at % problem.ldd < static_cast<size_t>(problem.layer.of.n);
    wrong += inside == (d[at] == kPoison);
  }
  return wrong;
}

// Runs one problem and prints a line about it; true if all is well.
bool check(const Layer& layer, int m, Random& random) {
  const ProblemClass& of = layer.of;
  const Problem problem(layer, m, random);
  const Result result = run(problem);
  const size_t misplaced = count_misplaced(problem, result.d);

  const Bound bound(layer.weight, layer.a, layer.d, kernel_called(result.kernel).rounds_weights);
  const std::vector<int> rows = sample(problem.rows, kSampledRows, random), columns = sample(of.n, kSampledColumns, random);
  double worst = 0, squared_error = 0, squared_value = 0;
  std::map<std::pair<int, int>, Column> cached;
  for (const int n : columns)
    for (const int row : rows) {
      const int expert = layer.moe ? problem.experts[row] : 0;
      const Column& column = cached.try_emplace({expert, n}, layer.weight, expert, n).first->second;
      const Exact exact = problem.exact(column, row, n);
      const double error = std::fabs(value_of(layer.d, result.d[static_cast<size_t>(row) * problem.ldd + n]) - exact.value);
      worst = std::max(worst, error <= INFINITY ? error / bound.allowed(exact) : INFINITY);  // NaN is worst
      squared_error += error * error;
      squared_value += exact.value * exact.value;
    }
  const double rms = std::sqrt(squared_error / squared_value) / bound.rms();
  const bool good = misplaced == 0 && result.workspace_is_clear && worst <= 1 && rms <= 1;
  std::printf("%s %s m=%d n=%d k=%d", good ? "ok  " : "FAIL", result.kernel, m, of.n, of.k);
  if (layer.moe) std::printf(" experts=%d top_k=%d", of.num_experts, of.top_k);
  std::printf("%s%s%s%s: error %.3f, rms %.3f of the bound", problem.bias.empty() ? "" : " bias",
              problem.channel_scales.empty() ? "" : " channel_scales",
              problem.topk_weights.empty() ? "" : " topk_weights", problem.whole_tiles ? " whole_tiles" : "", worst, rms);
  if (misplaced) std::printf("; %zu elements not written, or written outside D", misplaced);
  std::printf("%s\n", result.workspace_is_clear ? "" : "; the workspace is not clear");
  return good;
}

// Wrong calls are refused, each with its status, before anything is launched.
bool check_refusals(const Layer& layer) {
  const ProblemClass& of = layer.of;
  const Device<uint16_t> memory(64);
  BillhookMoeGemm good{};
  good.gemm.a = good.gemm.codes = good.gemm.scales = good.gemm.d = memory.data();
  good.gemm.zeros = has_zeros(layer.b) ? memory.data() : nullptr;
  good.gemm.token_scales = is_eight_bit_activation(layer.a) ? reinterpret_cast<const float*>(memory.data()) : nullptr;
  good.gemm.channel_scales = folds(layer.b, layer.s) ? good.gemm.token_scales : nullptr;
  good.gemm.m = billhook::kRanges[of.first_range + of.ranges - 1].last;
  good.gemm.n = of.n, good.gemm.k = of.k, good.gemm.group_size = of.group_size;
  good.gemm.a_type = layer.a, good.gemm.b_type = layer.b, good.gemm.s_type = layer.s, good.gemm.d_type = layer.d;
  int32_t* const ids = reinterpret_cast<int32_t*>(memory.data());
  good.num_experts = of.num_experts, good.top_k = of.top_k;
  good.sorted_token_ids = good.expert_ids = good.num_tokens_padded = ids;
  bool all = true, groups = false;
  if (layer.moe) {
    const char* name = "";
    require(billhook_moe_block_m(&good, &good.block_m), "billhook_moe_block_m");
    require(billhook_moe_gemm_kernel(&good, &name), "billhook_moe_gemm_kernel");
    require(billhook_moe_grouped_bytes(&good, &good.grouped_bytes), "billhook_moe_grouped_bytes");
    good.grouped = memory.data();
    groups = kernel_called(name).grouped;
  }
  const auto expect = [&](const char* what, BillhookStatus want, auto change, size_t bytes = 0) {
    BillhookMoeGemm bad = good;
    change(bad);
    const BillhookStatus got = layer.moe ? billhook_moe_gemm(&bad, memory.data(), bytes, nullptr)
                                         : billhook_gemm(&bad.gemm, memory.data(), bytes, nullptr);
    if (got == want) return;
    all = false;
    std::printf("FAIL %s: status is \"%s\", not \"%s\"\n", what, billhook_status_string(got), billhook_status_string(want));
  };
  const auto shift = [](const void* pointer) { return static_cast<const void*>(static_cast<const char*>(pointer) + 2); };
  expect("m = 0", BILLHOOK_INVALID_SIZE, [](BillhookMoeGemm& p) { p.gemm.m = 0; });
  expect("n not a multiple of 16", BILLHOOK_INVALID_SIZE, [](BillhookMoeGemm& p) { p.gemm.n += 8; });
  expect("n of no layer", BILLHOOK_UNSUPPORTED_PROBLEM, [](BillhookMoeGemm& p) { p.gemm.n = 1 << 30; });
  expect("types of no layer", BILLHOOK_UNSUPPORTED_PROBLEM, [](BillhookMoeGemm& p) { p.gemm.b_type = BILLHOOK_F32; });
  expect("lda less than k", BILLHOOK_INVALID_STRIDE, [](BillhookMoeGemm& p) { p.gemm.lda = 16; });
  expect("a of null", BILLHOOK_NULL_POINTER, [](BillhookMoeGemm& p) { p.gemm.a = nullptr; });
  if (good.gemm.token_scales)
    expect("no token scales", BILLHOOK_NULL_POINTER, [](BillhookMoeGemm& p) { p.gemm.token_scales = nullptr; });
  else
    expect("token scales", BILLHOOK_UNEXPECTED_POINTER,
           [&](BillhookMoeGemm& p) { p.gemm.token_scales = reinterpret_cast<const float*>(memory.data()); });
  if (good.gemm.channel_scales)
    expect("no channel scales", BILLHOOK_NULL_POINTER, [](BillhookMoeGemm& p) { p.gemm.channel_scales = nullptr; });
  expect("codes not aligned", BILLHOOK_MISALIGNED, [&](BillhookMoeGemm& p) { p.gemm.codes = shift(p.gemm.codes); });
  expect("no workspace", BILLHOOK_WORKSPACE_TOO_SMALL, [](BillhookMoeGemm&) {});
  if (layer.moe) expect("block_m of no kernel", BILLHOOK_INVALID_BLOCK_M, [](BillhookMoeGemm& p) { p.block_m = 3; });
  if (groups) {
    expect("nowhere to group rows", BILLHOOK_NULL_POINTER, [](BillhookMoeGemm& p) { p.grouped = nullptr; }, SIZE_MAX);
    expect("no room to group rows", BILLHOOK_GROUPED_TOO_SMALL, [](BillhookMoeGemm& p) { --p.grouped_bytes; }, SIZE_MAX);
  }
  return all;
}

// Checks one problem class: the edges of every range of m, and an m between.
bool check_class(const ProblemClass& one, Random& random) {
  const Layer layer(one, random);
  bool good = check_refusals(layer);
  int first = 1;
  for (int i = one.first_range; i < one.first_range + one.ranges; ++i) {
    const int last = std::max(first, std::min(billhook::kRanges[i].last, kLargestM));
    for (const int m : std::set<int>{first, first + static_cast<int>(random.below(last - first + 1)), last})
      good = check(layer, m, random) && good;
    first = billhook::kRanges[i].last + 1;
  }
  return good;
}

int check_all(uint64_t seed) {
  int gpu = 0, major = 0, minor = 0;
  require(cudaGetDevice(&gpu), "cudaGetDevice");
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu), "cudaDeviceGetAttribute");
  require(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu), "cudaDeviceGetAttribute");
  const billhook::Target* const end = billhook::kTargets + billhook::kTargetCount;
  const billhook::Target* const target = std::find_if(
      billhook::kTargets, end, [&](const billhook::Target& one) { return billhook::runs_on(one, major, minor); });
  if (target == end) {
    std::fprintf(stderr, "GPU %d is %d.%d; this library was emitted for others\n", gpu, major, minor);
    return 2;
  }
  require(billhook_load(&largest_workspace), "billhook_load");
  Random random(seed);
  bool good = true;
  for (int i = 0; i < target->classes; ++i) good = check_class(billhook::kClasses[target->first_class + i], random) && good;
  std::printf("%s\n", good ? "all within bounds" : "some problems failed");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return check_all(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
