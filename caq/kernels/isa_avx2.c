/* x86-64 with AVX2: bytes are widened to 16 bits, because vpmaddubsw saturates. */
#include "isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include <immintrin.h>
#include <string.h>

#define LANES 8
#define NR 8
#define MR 4
#define SELF caq_avx2
#define ZERO ((vec){_mm256_setzero_si256(), _mm256_setzero_si256()})
#define BROADCAST(p) broadcast(p)
#define DOT(a, x, w) dot(a, x, w)
#define STORE(p, v) store(p, v)

/* Sums of two products each: channels 0 to 3 in `low`, 4 to 7 in `high`. */
typedef struct {
    __m256i low, high;
} vec;
typedef __m256i operand;

CAQ_INLINE operand broadcast(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
}

CAQ_INLINE vec dot(vec a, operand x, const int8_t *w) {
    const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)w));
    const __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + 16)));
    return (vec){_mm256_add_epi32(a.low, _mm256_madd_epi16(low, x)), _mm256_add_epi32(a.high, _mm256_madd_epi16(high, x))};
}

CAQ_INLINE void store(int32_t *p, vec v) {
    /* Lanes 0 1 4 5 2 3 6 7 */
    const __m256i sums = _mm256_hadd_epi32(v.low, v.high);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(sums, 0xd8));
}

#include "body.h"

static int runs(void) { return __builtin_cpu_supports("avx2") != 0; }

const caq_isa caq_avx2 = {
    .name = "avx2",
    .runs = runs,
    .nr_max = NR,
    .nr_min = NR,
    .x_zero = 0,
    BODY_FUNCTIONS,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
