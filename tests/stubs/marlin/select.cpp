// Compares two forms of kernel_selector.h. `select agree` runs both on every combination of `domain.h`;
// `select time` measures both on the parameters of kernels that exist, in random order.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"

namespace MARLIN_NAMESPACE_NAME {

struct Query {
  vllm::ScalarType a, b, c, s;
  int threads, thread_m_blocks, thread_n_blocks, thread_k_blocks;
  bool m_block_size_8;
  int stages, group_blocks;
  bool is_zp_float;
};

using Kernel = void (*)(MARLIN_KERNEL_PARAMS);

#define UNPACK(query)                                                                        \
  vllm::ScalarType const a_type = query.a, b_type = query.b, c_type = query.c, s_type = query.s; \
  int const threads = query.threads, thread_m_blocks = query.thread_m_blocks;                \
  int const thread_n_blocks = query.thread_n_blocks, thread_k_blocks = query.thread_k_blocks; \
  bool const m_block_size_8 = query.m_block_size_8, is_zp_float = query.is_zp_float;         \
  int const stages = query.stages, group_blocks = query.group_blocks

[[gnu::noinline]] Kernel select_chain(Query const& query) {
  UNPACK(query);
  Kernel kernel = nullptr;
#include "chain/kernel_selector.h"
  return kernel;
}

[[gnu::noinline]] Kernel select_switch(Query const& query) {
  UNPACK(query);
  Kernel kernel = nullptr;
#include "switch/kernel_selector.h"
  return kernel;
}

#include "domain.h"  // types, kernels, and the values of each number: those of kernels, and strangers

struct Answer {
  Kernel kernel;
  std::string error;
  bool operator==(Answer const& other) const { return kernel == other.kernel && error == other.error; }
};

template <typename Select>
Answer ask(Select select, Query const& query) {
  try {
    return {select(query), ""};
  } catch (std::runtime_error const& error) {
    return {nullptr, error.what()};
  }
}

struct Tally {
  long asked = 0, selected = 0, refused = 0, different = 0, right = 0;

  void compare(Query const& query) {
    Answer const chain = ask(select_chain, query), nested = ask(select_switch, query);
    ++asked;
    selected += chain.kernel != nullptr;
    refused += !chain.error.empty();
    different += !(chain == nested);
  }
};

int agree() {
  Tally tally;
  // Every combination of numbers, for all types that have kernels.
  for (Query query : type_quadruples)
    for (int threads : all_threads)
      for (int m : all_thread_m_blocks)
        for (int n : all_thread_n_blocks)
          for (int k : all_thread_k_blocks)
            for (int stages : all_stages)
              for (int group : all_group_blocks)
                for (int flags = 0; flags < 4; ++flags)
                  tally.compare({query.a, query.b, query.c, query.s, threads, m, n, k, bool(flags & 1), stages, group,
                                 bool(flags & 2)});
  // Every type in the place of each of a kernel's types.
  for (auto const& known : kernels) {
    tally.right += select_chain(known.query) == known.kernel && select_switch(known.query) == known.kernel;
    for (auto place : {&Query::a, &Query::b, &Query::c, &Query::s})
      for (auto const& type : all_types) {
        Query query = known.query;
        query.*place = type;
        tally.compare(query);
      }
  }
  std::printf("{\"asked\": %ld, \"selected\": %ld, \"refused\": %ld, \"different\": %ld, \"right\": %ld}\n",
              tally.asked, tally.selected, tally.refused, tally.different, tally.right);
  return tally.different != 0;
}

template <typename Select>
double nanoseconds(Select select, std::vector<Query> const& queries) {
  auto const start = std::chrono::steady_clock::now();
  for (Query const& query : queries) {
    Kernel volatile kernel = select(query);
    (void)kernel;
  }
  std::chrono::duration<double, std::nano> const elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / double(queries.size());
}

int time() {
  std::vector<Query> queries;
  for (auto const& known : kernels) queries.insert(queries.end(), 16, known.query);
  std::shuffle(queries.begin(), queries.end(), std::mt19937(1));
  for (int round = 0; round < 15; ++round)
    std::printf("{\"chain\": %.2f, \"switch\": %.2f}\n", nanoseconds(select_chain, queries),
                nanoseconds(select_switch, queries));
  return 0;
}

}  // namespace MARLIN_NAMESPACE_NAME

int main(int count, char** words) {
  bool const timing = count == 2 && std::string(words[1]) == "time";
  return timing ? marlin_stub::time() : marlin_stub::agree();
}
