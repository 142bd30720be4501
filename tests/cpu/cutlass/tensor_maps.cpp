// Prints what CuTe hands the driver to make tensor maps of activations: host code, with a driver that only tells.
#define __CUDACC_VER_MAJOR__ 13
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL
#include <cute/tensor.hpp>

#include <cstdio>
#include <cute/atom/copy_traits_sm90_tma.hpp>

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* extents,
                                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  std::printf("%d %u %llu %llu %llu %llu %u %u %u %u %d %d %d %d\n", type, rank, reinterpret_cast<unsigned long long>(address),
              static_cast<unsigned long long>(extents[0]), static_cast<unsigned long long>(extents[1]),
              static_cast<unsigned long long>(strides[0]), box[0], box[1], steps[0], steps[1], interleave, swizzle, promotion, fill);
  return CUDA_SUCCESS;
}

// Boxes of 64 rows of 128 bytes, swizzled as wgmma reads them.
template <class T>
void make(unsigned long long address, int rows, int features, long long stride) {
  using namespace cute;
  const auto box = tile_to_shape(GMMA::Layout_K_SW128_Atom<T>{}, make_shape(_64{}, Int<128 / sizeof(T)>{}));
  const auto matrix = make_tensor(make_gmem_ptr(reinterpret_cast<const T*>(address)), make_shape(rows, features), make_stride(stride, _1{}));
  make_tma_copy(SM90_TMA_LOAD{}, matrix, box);
}

int main() {
  make<cutlass::half_t>(0x7000, 300, 4096, 4112);
  make<cutlass::bfloat16_t>(0x7000, 300, 4096, 4112);
  make<cutlass::float_e4m3_t>(0x7000, 300, 4096, 4112);
  make<int8_t>(0x7000, 300, 4096, 4112);
}
