// Stores past the caches (non-temporal). A line that is written whole is then not read first, and
// pushes no other line out of the cache: memory takes up to twice as many bytes a second. Included
// once per instruction set, as register_tile.h.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "cpu/simd/register_tile.h"

namespace convbp::CONVBP_ISA {

// Stores a vector at an address that is a multiple of its size, past the caches where the processor
// can.
CONVBP_INLINE void stream(typename Simd<float>::Vector v, float* to) {
#if !defined(__x86_64__)
  vector_at(to) = v;
#elif CONVBP_VECTOR_BYTES == 64 && !defined(CONVBP_EMULATE_AVX512)
  _mm512_stream_ps(to, (__m512)v);
#elif CONVBP_VECTOR_BYTES == 64
  _mm256_stream_ps(to, (__m256)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7));
  _mm256_stream_ps(to + 8, (__m256)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#elif CONVBP_VECTOR_BYTES == 32
  _mm256_stream_ps(to, (__m256)v);
#else
  _mm_stream_ps(to, (__m128)v);
#endif
}

// Orders streamed stores before what another thread does next: called at the end of a task's range.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace convbp::CONVBP_ISA
