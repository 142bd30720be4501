// Programmatic dependent launch (SM90+; nothing elsewhere).
// Source: PTX ISA 9.0, "griddepcontrol"; CUDA Programming Guide, "Programmatic Dependent Launch".
#pragma once

namespace billhook::ptx {

// Lets the next kernel of the stream start once every CTA of this one has come here.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before this one have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace billhook::ptx
