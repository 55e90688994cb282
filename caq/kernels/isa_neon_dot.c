/* 64-bit Arm with the dot-product extension (Armv8.2 and later): one sdot does 16 products of signed bytes. */
#include "isa.h"

#if defined(__aarch64__)
#if defined(__ARM_FEATURE_DOTPROD)
enum { ALWAYS = 1 }; /* the compiler was told that the CPU has it */
#else
enum { ALWAYS = 0 };
#endif
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#include <string.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define LANES 4
#define NR 16
#define MR 4
#define SELF caq_neon_dot
#define ZERO vdupq_n_s32(0)
#define BROADCAST(p) broadcast(p)
#define DOT(a, x, w) dot(a, x, w)
#define STORE(p, v) vst1q_s32(p, v)
typedef int32x4_t vec;
typedef int8x16_t operand;

CAQ_INLINE operand broadcast(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u)); /* x - 128 */
}

CAQ_INLINE vec dot(vec a, operand x, const int8_t *w) {
#if defined(__clang__) && __clang_major__ < 16
    /* These declare the intrinsic only where the whole file is compiled for such CPUs. */
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(a) : "w"(vld1q_s8(w)), "w"(x));
    return a;
#else
    return vdotq_s32(a, vld1q_s8(w), x);
#endif
}

#include "body.h"

static int runs(void) {
#if defined(__linux__)
    return ALWAYS || (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return ALWAYS;
#endif
}

const caq_isa caq_neon_dot = {
    .name = "neon_dot",
    .runs = runs,
    .nr_max = NR,
    .nr_min = NR,
    .x_zero = 128,
    BODY_FUNCTIONS,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
