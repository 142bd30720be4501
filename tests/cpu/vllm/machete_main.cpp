// Answers questions about a generated dispatch, one a line; see `Dispatch` in test_machete_compiled.py.
#include <iostream>

#include "machete_mm_launcher.cuh"

using namespace machete;

static std::optional<Scalar> scalar(std::string const& name) {
  for (int type = 0; type < 6; ++type)
    if (name == toString(static_cast<Scalar>(type))) return static_cast<Scalar>(type);
  return std::nullopt;
}
static std::optional<Tensor> tensor(std::string const& name) {
  auto type = scalar(name);
  return type ? std::optional<Tensor>(Tensor{{1, 1}, *type, ""}) : std::nullopt;
}
static vllm::ScalarType weight(std::string const& name) {
  for (auto type : {vllm::kU4, vllm::kU8, vllm::kU4B8, vllm::kU8B128, vllm::kFE4M3fn})
    if (name == type.str()) return type;
  throw std::invalid_argument(name);
}

int main() {
  std::string question, a, b, group_scale, zero, channel_scale, token_scale, out, schedule;
  while (std::cin >> question >> a >> b >> group_scale >> zero >> channel_scale >> token_scale >> out) {
    int64_t m, n, k;
    std::cin >> m >> n >> k >> schedule;
    auto b_type = weight(b);
    auto out_type = scalar(out);
    try {
      if (question == "mm") {
        Tensor A{{m, k}, *scalar(a), ""}, B{{k, n}, *scalar(a), ""};
        auto scales = tensor(group_scale), zeros = tensor(zero), channel = tensor(channel_scale),
             token = tensor(token_scale);
        std::optional<std::string> asked;
        if (schedule != "-") asked = schedule;
        MMArgs args{A, B, b_type, out_type, scales, zeros, std::nullopt, channel, token, asked};
        std::cout << mm_dispatch(args).made_by << "\n";
      } else if (question == "pack") {
        Tensor B{{k, n}, *scalar(a), ""};
        std::cout << prepack_B_dispatch({B, *scalar(a), b_type, scalar(group_scale)}).made_by << "\n";
      } else {
        SupportedSchedulesArgs args{*scalar(a), b_type, scalar(group_scale), scalar(zero), scalar(channel_scale),
                                    scalar(token_scale), out_type};
        for (auto const& one : supported_schedules_dispatch(args)) std::cout << one << " ";
        std::cout << "\n";
      }
    } catch (NotImplemented const& error) {
      std::string text = error.what();
      for (char& letter : text) if (letter == '\n') letter = '|';
      std::cout << "error: " << text << "\n";
    }
  }
}
