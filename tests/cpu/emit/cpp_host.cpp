// The parts of an emitted library that need no GPU, asked from a test: `select` answers lines on stdin with kernel names,
// `group` with 1 where rows may be grouped, `grid` with numbers of CTAs; `pack ...` prints a random weight, its packed form
// and error bounds as named lines of numbers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "dispatch.h"
#include "reference.h"

namespace {

template <class Answer>
void answer(const Answer& print) {
  billhook::Problem p;
  int major, minor, block_m, a, b, s, d;
  while (std::scanf("%d %d %d %d %d %d %d %d %d %d %d %d %d", &major, &minor, &a, &b, &s, &d, &p.group_size, &p.num_experts,
                    &p.top_k, &p.n, &p.k, &p.m, &block_m) == 13) {
    p.types = billhook::pack_types(a, b, s, d);
    print(p, major, minor, block_m);
  }
}

void select() {
  answer([](const billhook::Problem& p, int major, int minor, int block_m) {
    const billhook::Kernel* const kernel =
        block_m ? billhook::select_kernel_of(block_m, p, major, minor) : billhook::select_kernel(p, major, minor);
    std::puts(kernel ? kernel->name : "-");
  });
}

void group() {
  answer([](const billhook::Problem& p, int major, int minor, int block_m) {
    std::puts(billhook::may_group(block_m, p, major, minor) ? "1" : "0");
  });
}

void grid() {
  billhook::Work work;
  int kernel, multiprocessors, resident, split_k;
  while (std::scanf("%d %d %d %d %d %d %d", &kernel, &multiprocessors, &resident, &work.tiles_m, &work.strips, &work.blocks,
                    &split_k) == 7) {
    work.split_k = split_k;
    std::printf("%d\n", billhook::count_ctas(billhook::kKernels[kernel], work, multiprocessors, resident));
  }
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s", name);
  for (const T& value : values) std::printf(" %.17g", static_cast<double>(value));
  std::puts("");
}

void pack(char** numbers) {
  int v[7];  // types of codes, scales and D; n, k, group_size, experts
  for (int i = 0; i < 7; ++i) v[i] = std::atoi(numbers[i]);
  test::Random random(1);
  const auto type = [&](int i) { return static_cast<BillhookType>(v[i]); };
  const test::Weight weight(type(0), type(1), type(2), v[3], v[4], v[5], v[6], random);
  std::vector<double> values;
  for (int expert = 0; expert < weight.experts; ++expert)
    for (int k = 0; k < weight.k; ++k)
      for (int n = 0; n < weight.n; ++n) values.push_back(weight.value(expert, k, n));
  print("codes", weight.codes);
  print("scales", weight.scales);
  print("zeros", weight.zeros);
  print("values", values);
  print("packed_codes", test::pack_codes(weight));
  print("packed_scales", test::pack_scales(weight));
  print("packed_zeros", test::pack_zeros(weight));
  for (const BillhookType a : {type(2), BILLHOOK_S8, BILLHOOK_E4M3FN})
    for (const bool rounds : {false, true}) {
      const test::Bound bound(weight, a, type(2), rounds);
      const auto allowed = [&](double value, double magnitude, double activations) {
        return bound.allowed({value, magnitude, activations});
      };
      print((std::string(test::name_of(a)) + (rounds ? "_rounding_bound" : "_bound")).c_str(),
            std::vector<double>{allowed(0, 0, 0), allowed(-1, 0, 0), allowed(0, 1, 0), allowed(0, 0, 1), bound.rms()});
    }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "select")) {
    select();
    return 0;
  }
  if (argc == 2 && !std::strcmp(argv[1], "group")) {
    group();
    return 0;
  }
  if (argc == 2 && !std::strcmp(argv[1], "grid")) {
    grid();
    return 0;
  }
  if (argc != 9 || std::strcmp(argv[1], "pack")) return 2;
  pack(argv + 2);
  return 0;
}
