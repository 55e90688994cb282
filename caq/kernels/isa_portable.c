/* The path that is always there: C11, no intrinsics. */
#include "isa.h"

#define LANES 1
#define NR 4
#define MR 4
#define SELF caq_portable
#define ZERO 0
#define BROADCAST(p) (p)
#define DOT(a, x, w) ((a) + (x)[0] * (w)[0] + (x)[1] * (w)[1] + (x)[2] * (w)[2] + (x)[3] * (w)[3])
#define STORE(p, v) (*(p) = (v))
typedef int32_t vec;
typedef const uint8_t *operand;

#include "body.h"

static int runs(void) { return 1; }

const caq_isa caq_portable = {
    .name = "portable",
    .runs = runs,
    .nr_max = NR,
    .nr_min = NR,
    .x_zero = 0,
    BODY_FUNCTIONS,
};
