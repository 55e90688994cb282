/* Arm with NEON, 32 or 64 bits. Its products are of signed bytes: a product fits int16 and a sum of two might not, so they
 * are added by pairs to int32. */
#include "isa.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#include <string.h>
#if defined(__linux__) && !defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define LANES 4
#define NR 8
#if defined(__aarch64__)
#define MR 4
#else
#define MR 2 /* of 16 registers */
#endif
#define SELF caq_neon
#define ZERO ((vec){vdupq_n_s32(0), vdupq_n_s32(0)})
#define BROADCAST(p) broadcast(p)
#define DOT(a, x, w) dot(a, x, w)
#define STORE(p, v) store(p, v)

/* Two sums a channel, side by side: channels 0 and 1 in `low`, 2 and 3 in `high`. */
typedef struct {
    int32x4_t low, high;
} vec;
typedef int8x8_t operand;

CAQ_INLINE operand broadcast(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpret_s8_u32(vdup_n_u32(four ^ 0x80808080u)); /* x - 128 */
}

CAQ_INLINE vec dot(vec a, operand x, const int8_t *w) {
    return (vec){vpadalq_s16(a.low, vmull_s8(vld1_s8(w), x)), vpadalq_s16(a.high, vmull_s8(vld1_s8(w + 8), x))};
}

CAQ_INLINE void store(int32_t *p, vec v) {
#if defined(__aarch64__)
    vst1q_s32(p, vpaddq_s32(v.low, v.high));
#else
    vst1_s32(p, vpadd_s32(vget_low_s32(v.low), vget_high_s32(v.low)));
    vst1_s32(p + 2, vpadd_s32(vget_low_s32(v.high), vget_high_s32(v.high)));
#endif
}

#include "body.h"

static int runs(void) {
#if defined(__linux__) && !defined(__aarch64__)
    return (getauxval(AT_HWCAP) & HWCAP_NEON) != 0;
#else
    return 1;
#endif
}

const caq_isa caq_neon = {
    .name = "neon",
    .runs = runs,
    .nr_max = NR,
    .nr_min = NR,
    .x_zero = 128,
    BODY_FUNCTIONS,
};
#endif
