// Element types of weights and scales as tags, and what kernels must know of each to lay it out. The plain byte u8 is the
// tag of 8-bit codes with zero points; f16 and bf16 (float16.cuh) are scales too.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

struct u4 {};       // value code - zero, the zero point lying beside the scale (AWQ)
struct u4b8 {};     // value code - 8 (GPTQ)
struct u8b128 {};   // value code - 128 (GPTQ)
struct e4m3fn {};   // sign, 4 bits of exponent (bias 7), 3 of mantissa; all ones but the sign: NaN; no infinities (OFP8 1.0)
struct e2m1f {};    // sign, 2 bits of exponent (bias 1), 1 of mantissa; no NaN, no infinities (OCP Microscaling 1.0)
struct s8 {};       // two's complement; activations alone
struct e8m0fnu {};  // 2^(code - 127), a scale; 255: NaN (OCP Microscaling 1.0)

template <class Element>
constexpr i32 bits = 16;
template <>
constexpr i32 bits<u4> = 4;
template <>
constexpr i32 bits<u4b8> = 4;
template <>
constexpr i32 bits<e2m1f> = 4;
template <>
constexpr i32 bits<u8> = 8;
template <>
constexpr i32 bits<u8b128> = 8;
template <>
constexpr i32 bits<e4m3fn> = 8;
template <>
constexpr i32 bits<e8m0fnu> = 8;
template <>
constexpr i32 bits<s8> = 8;

// Whether each scale has a zero point beside it, an integer of the activations' type.
template <class Weight>
constexpr bool has_zeros = false;
template <>
constexpr bool has_zeros<u4> = true;
template <>
constexpr bool has_zeros<u8> = true;

// Whether some code is no number.
template <class Weight>
constexpr bool has_nan = false;
template <>
constexpr bool has_nan<e4m3fn> = true;

// Whether sums of products with these activations are integers of 32 bits, else float32.
template <class Activation>
constexpr bool sums_integers = false;
template <>
constexpr bool sums_integers<s8> = true;

// Whether one more scale, of a whole weight matrix, multiplies the output: where group scales are of a narrow range (NVFP4).
template <class Scale>
constexpr bool has_global_scale = false;
template <>
constexpr bool has_global_scale<e4m3fn> = true;

}  // namespace billhook
