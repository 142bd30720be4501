/* The C interface of a library of GEMM kernels that `billhook emit` wrote.
 *
 *     D = (A @ W * channel_scales * token_scales * global_scales + bias) * topk_weights
 *
 * A [m, k] activations, row-major. W [k, n] quantized and packed weights (docs/layout.md of Billhook). Which kernel serves
 * which problem was decided when the library was emitted; a problem that it was not emitted for is refused. Every call
 * checks its arguments first and launches nothing if one is wrong. Calls are thread-safe and work on the current GPU;
 * pointers in the structs are device pointers; optional ones are null when absent, so a zeroed struct is a good start.
 */
#ifndef BILLHOOK_H_
#define BILLHOOK_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* cudaStream_t; /* as the CUDA runtime's headers have it */

typedef enum BillhookStatus {
  BILLHOOK_OK = 0,
  BILLHOOK_NULL_POINTER,
  BILLHOOK_UNEXPECTED_POINTER,
  BILLHOOK_INVALID_SIZE,
  BILLHOOK_INVALID_STRIDE,
  BILLHOOK_MISALIGNED,
  BILLHOOK_UNSUPPORTED_PROBLEM,
  BILLHOOK_UNSUPPORTED_GPU,
  BILLHOOK_INVALID_BLOCK_M,
  BILLHOOK_WORKSPACE_TOO_SMALL,
  BILLHOOK_GROUPED_TOO_SMALL,
  BILLHOOK_CUDA_ERROR
} BillhookStatus;

typedef enum BillhookType {
  BILLHOOK_F16 = 1,
  BILLHOOK_BF16,
  BILLHOOK_F32,
  BILLHOOK_S8,
  BILLHOOK_S32,
  BILLHOOK_U4,
  BILLHOOK_U4B8,
  BILLHOOK_U8,
  BILLHOOK_U8B128,
  BILLHOOK_E4M3FN,
  BILLHOOK_E2M1F,
  BILLHOOK_E8M0FNU
} BillhookType;

/* One dense GEMM. */
typedef struct BillhookGemm {
  const void* a;               /* activations: rows of lda elements, each beginning at a multiple of 16 bytes */
  const void* codes;           /* packed weights; this and the next two aligned to 16 bytes */
  const void* scales;          /* packed scales */
  const void* zeros;           /* packed zero points; for u4 and u8 weights, null for all others */
  const float* channel_scales; /* [n], aligned to 16 bytes; for 8-bit activations, optional unless u4b8 weights have e4m3fn
                                  scales; null for all others */
  const float* token_scales;   /* [m]; for 8-bit activations, null for all others */
  const float* global_scales;  /* [1]; for e2m1f weights with e4m3fn scales, optional; null for all others */
  const void* bias;            /* [n] in D's type, aligned to 8 bytes; optional */
  void* d;                     /* output: rows of ldd elements, each beginning at a multiple of 16 bytes */
  int32_t m, n, k;             /* m >= 1; n and k multiples of 16 */
  int32_t lda, ldd;            /* elements between rows; 0 for dense rows (k and n) */
  int32_t group_size;          /* weights along k that share a scale; -1 for one scale per output feature */
  BillhookType a_type, b_type, s_type, d_type;
  int32_t whole_tiles; /* 1: no two CTAs share an output tile, so that a row's bits do not depend on the rows beside it */
} BillhookGemm;

/* One GEMM of a Mixture-of-Experts layer: every row of A visits top_k experts, and D has a row for each (row, slot) pair.
 * For the second GEMM of a layer, whose A has those rows already, top_k is 1 and the routing is the same. Weights, bias and
 * channel_scales have a leading axis of experts, global_scales is [num_experts]. Rows of D without an expert are not
 * written. */
typedef struct BillhookMoeGemm {
  BillhookGemm gemm; /* m: rows of A */
  int32_t num_experts, top_k;
  int32_t block_m;                  /* rows of one block of the routing; see billhook_moe_block_m */
  const int32_t* sorted_token_ids;  /* what billhook_route writes */
  const int32_t* expert_ids;        /* likewise */
  const int32_t* num_tokens_padded; /* likewise */
  const float* topk_weights;        /* [m * top_k]; optional */
  void* grouped;                    /* where rows of A are copied, aligned to 16 bytes; see billhook_moe_grouped_bytes */
  size_t grouped_bytes;             /* its size */
} BillhookMoeGemm;

/* The routing of a Mixture-of-Experts layer: (row, slot) pairs sorted by expert, in blocks that each belong to one. */
typedef struct BillhookRoute {
  const int32_t* topk_ids; /* [rows]: the expert of each pair; aligned to 16 bytes; ids outside the experts are dropped */
  int32_t rows, num_experts, block_m;
  int32_t* sorted_token_ids;  /* room for billhook_route_blocks(...) * block_m */
  int32_t* expert_ids;        /* room for billhook_route_blocks(...) */
  int32_t* num_tokens_padded; /* [1] */
} BillhookRoute;

/* Returns what a status means, and what to do. The text is static. */
const char* billhook_status_string(BillhookStatus status);

/* Loads every kernel onto the current GPU, and finds the bytes of workspace that are enough for any call there. Kernels not
 * loaded before are loaded by the first call that needs them; do it here before a stream is captured. */
BillhookStatus billhook_load(size_t* workspace_bytes);

/* Finds the bytes of workspace that one call needs on the current GPU. Pointers in the struct are not looked at. */
BillhookStatus billhook_gemm_workspace(const BillhookGemm* problem, size_t* bytes);
BillhookStatus billhook_moe_gemm_workspace(const BillhookMoeGemm* problem, size_t* bytes);

/* Finds the bytes of `grouped` that are enough for a Mixture-of-Experts GEMM with its block_m, and for each with fewer rows: 0
 * if its kernels look their rows of A up, else room for a copy in the routing's order, which they fetch many rows at a time
 * from. What the room holds before and after a call does not matter. */
BillhookStatus billhook_moe_grouped_bytes(const BillhookMoeGemm* problem, size_t* bytes);

/* Prepares a workspace; once, before its first use. Every call leaves it prepared. Calls that may run at the same time (on
 * different streams) need workspaces, and room for grouped rows, of their own. */
BillhookStatus billhook_clear_workspace(void* workspace, size_t bytes, cudaStream_t stream);

/* Multiplies. `workspace`: 16-byte aligned, cleared, of at least the size asked for; larger ones do as well. */
BillhookStatus billhook_gemm(const BillhookGemm* problem, void* workspace, size_t bytes, cudaStream_t stream);
BillhookStatus billhook_moe_gemm(const BillhookMoeGemm* problem, void* workspace, size_t bytes, cudaStream_t stream);

/* Finds the block_m that suits a Mixture-of-Experts GEMM best; its own block_m is not looked at. */
BillhookStatus billhook_moe_block_m(const BillhookMoeGemm* problem, int32_t* block_m);

/* Returns the most blocks that any routing of these rows has. */
int32_t billhook_route_blocks(int32_t rows, int32_t num_experts, int32_t block_m);

/* Routes on the GPU; the same ids always give the same routing. */
BillhookStatus billhook_route(const BillhookRoute* routing, cudaStream_t stream);

/* Finds the name of the kernel that serves a problem on the current GPU; the text is static. */
BillhookStatus billhook_gemm_kernel(const BillhookGemm* problem, const char** name);
BillhookStatus billhook_moe_gemm_kernel(const BillhookMoeGemm* problem, const char** name);

#ifdef __cplusplus
}
#endif

#endif /* BILLHOOK_H_ */
