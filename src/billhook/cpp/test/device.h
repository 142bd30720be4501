// Memory on the GPU, freed when it goes out of scope.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "billhook.h"

namespace test {

inline void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline void require(BillhookStatus status, const char* what) {
  if (status != BILLHOOK_OK) throw std::runtime_error(std::string(what) + ": " + billhook_status_string(status));
}

template <class T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    if (count) require(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "cudaMalloc");
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    if (count_) require(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data_); }

  T* data() const { return data_; }  // null if empty
  size_t bytes() const { return count_ * sizeof(T); }

  std::vector<T> host() const {
    std::vector<T> values(count_);
    require(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace test
