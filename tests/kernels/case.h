/* One random case of a kernel, in the terms of caq/kernels/reference.py: codes, not bytes of an arena. */
#ifndef CASE_H
#define CASE_H

#include "caq.h"

enum { MOST_INPUTS = 8 };

typedef struct {
    int h, w, c;
    int bytes, is_signed;
    int low, high; /* the range of its codes */
    int top, bottom, left, right; /* halo */
    int32_t *codes;
} tensor;

/* mantissa * 2**exponent: every machine makes the same double of it. */
typedef struct {
    int32_t mantissa, exponent;
} number;

typedef struct {
    uint64_t seed;
    int kind; /* as a step's */
    int input_count;
    tensor in[MOST_INPUTS]; /* conv: its input, and the residual */
    tensor out;             /* its codes are what naive_run expects */
    caq_window window;
    int low, high; /* of the conv's codes; for other kinds those of `out` */
    int refused;   /* whether the parameters must be refused, says naive_run */

    /* conv */
    int groups, weight_width, activation_width;
    int narrows; /* there is a place to narrow the input to */
    number ratio, output_ratio;
    int64_t weights;
    int8_t *q; /* 8-bit codes */
    int gain_exponent, bias_exponent;
    int16_t *gain, *bias;

    caq_sum sum; /* add, and conv with a residual */
    number scale[MOST_INPUTS]; /* of lookup's inputs, and of avg_pool before the window divides it */

    int has_table; /* a narrowing by the reader, of bytes as the arena holds them */
    uint8_t table[256];

    /* Where it lies, and how it is run. */
    int in_place;      /* input that the output overwrites, or -1 */
    int same_residual; /* the residual is the input itself */
    int lean, refill, last_first;

    /* Through caq_run, which encodes raw samples; else caq_run_step. */
    int encoded, dtype, scaling_channels, bad; /* bad: the sample that holds no number, or -1 */
    int32_t *scaling;                          /* (3, channels) */
    number *resolution, *raw;
} test_case;

/* The codes of `t->out`, and `t->refused`: from the definitions, by plain loops. */
void naive_run(test_case *t);

/* quant.fixed_point for one channel. Returns 1 if it is refused. */
int naive_fixed_point(double scale, double bias, int64_t limit, int output_bits, int64_t *five);
int64_t naive_requantize(int64_t accumulator, const int64_t *five, int64_t low, int64_t high);

/* Scale of an avg_pool's or a lookup's input, and the largest magnitude that is requantized with it. */
double naive_scale(const test_case *t, int input);
int64_t naive_limit(const test_case *t, int input);

#endif
