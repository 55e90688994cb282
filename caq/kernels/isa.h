/* What an instruction set provides: one table each, at the end of its file (isa_*.c). */
#ifndef CAQ_ISA_H
#define CAQ_ISA_H

#include "caq.h"

#define CAQ_MAX_NR 64 /* channels of the widest block of any instruction set */

#define CAQ_INLINE static inline __attribute__((always_inline))
#define CAQ_UNROLL _Pragma("GCC unroll 64")

/* One convolution, its buffers resolved. Pixels are counted over the whole output, row by row. */
typedef struct {
    const caq_conv *conv;
    const uint8_t *x; /* the first window's first byte: padding is inside the halo */
    int32_t x_row;
    uint8_t *y;
    int32_t y_row, y_w;
    const int8_t *panel;
    int32_t begin; /* the output channel, a multiple of CAQ_MAX_NR, that the panel begins with; 0 if there are groups */
    int32_t weight_width;
    const void *requantize;
    int32_t low, high, zero; /* of the output's codes */
    const uint8_t *narrow;   /* 256 bytes applied last, or NULL */
    const caq_sum *sum;      /* the residual add, or NULL; its term 0 is the convolution's output */
    const uint8_t *residual; /* its first pixel */
    int32_t residual_row, residual_zero, sum_zero;
} caq_conv_task;

typedef struct {
    const char *name;
    int (*runs)(void); /* whether this CPU has it */
    int32_t nr_max, nr_min; /* channels of a block: nr_max, or halves of it down to nr_min for the last ones */
    int32_t x_zero;         /* what the products take off every input byte: 0, or 128 where they are signed */
    /* Pixels [first, last) of channels [from, to), which are multiples of nr_max but for the last one; where there are
     * several groups, all the channels of each. */
    void (*conv)(const caq_conv_task *task, int64_t first, int64_t last, int32_t from, int32_t to);
    void (*depthwise)(const caq_conv_task *task, int32_t first, int32_t last); /* rows [first, last) */
    void (*unpack)(const uint8_t *planes, int64_t plane_stride, int width, int64_t count, int8_t *m);
    int64_t (*panel_bytes)(const caq_conv *conv, int width);
    void (*panel)(const caq_conv *conv, int width, const int8_t *m, int8_t *panel);
    int64_t (*requantize_bytes)(const caq_conv *conv);
    void (*requantize)(const caq_conv *conv, const int32_t *five, const int32_t *sums, int32_t zero, void *out);
    void (*add)(const caq_sum *sum, const uint8_t *a, int32_t a_zero, const uint8_t *b, int32_t b_zero, uint8_t *y,
                int32_t y_zero, int64_t n);
    /* The `n` items of a sample to codes. Returns 0, or 1 on NaN and infinity. */
    int (*encode)(const caq_program *program, const uint8_t *x, uint8_t *y, int64_t n);
    /* Of `n` <= CAQ_MAX_NR channels of rows x columns pixels; sums has room for CAQ_MAX_NR. */
    void (*max_pool)(const uint8_t *x, int64_t row_step, int64_t step, int rows, int columns, int n, uint8_t *y);
    void (*sum_pool)(const uint8_t *x, int64_t row_step, int64_t step, int rows, int columns, int n, int32_t *sums);
    void (*lookup)(const uint8_t *x, const uint8_t *table, uint8_t *y, int64_t n);
} caq_isa;

extern const caq_isa caq_portable;
extern const caq_isa caq_avx2;
extern const caq_isa caq_avx512vnni;
extern const caq_isa caq_neon;
extern const caq_isa caq_neon_dot;

/* The kernels for depthwise layers hold an offset a tap; what is larger, or writes 16 bits, is a convolution in groups. */
enum { CAQ_MOST_TAPS = 64 };

CAQ_INLINE int caq_is_depthwise(const caq_conv *c) {
    return c->groups > 1 && c->groups == c->in_channels && c->groups == c->out_channels && c->out_bytes == 1
           && c->window.kernel_h * c->window.kernel_w <= CAQ_MOST_TAPS;
}

/* What is unpacked at once: CAQ_MAX_NR output channels from `begin` on, or what is left of them; with groups, all. The weights
 * of so many channels begin at a whole byte of their planes. */
CAQ_INLINE caq_conv caq_slice(const caq_conv *c, int32_t begin) {
    caq_conv part = *c;
    if (c->groups == 1) part.out_channels = c->out_channels - begin < CAQ_MAX_NR ? c->out_channels - begin : CAQ_MAX_NR;
    return part;
}

CAQ_INLINE int64_t caq_fan_in(const caq_conv *c) {
    return (int64_t)c->window.kernel_h * c->window.kernel_w * (c->groups == 1 ? c->in_channels : c->in_channels / c->groups);
}

/* How a window falls apart into runs: stretches of `length` input bytes that lie together. */
typedef struct {
    int32_t rows, columns; /* runs in y and in x */
    int32_t length, quads;
    int32_t column_step; /* bytes from one run to the next in x */
} caq_runs;

CAQ_INLINE caq_runs caq_runs_of(const caq_conv *c) {
    const int whole = c->groups == 1 && c->window.dilation_w == 1;
    const int per_group = c->groups == 1 ? c->in_channels : c->in_channels / c->groups; /* dividing takes time */
    caq_runs r;
    r.rows = c->window.kernel_h;
    r.columns = whole ? 1 : c->window.kernel_w;
    r.length = whole ? c->window.kernel_w * per_group : per_group;
    r.quads = (r.length + 3) / 4;
    r.column_step = c->window.dilation_w * c->in_channels;
    return r;
}

/* Channels of the block that begins where `left` channels are left. */
CAQ_INLINE int caq_block(const caq_isa *isa, int left) {
    int nr = isa->nr_max;
    while (nr > isa->nr_min && left <= nr / 2) nr /= 2;
    return nr;
}

/* Channels of a group, filled up to whole blocks. */
CAQ_INLINE int caq_padded(const caq_isa *isa, int channels) {
    int padded = 0;
    while (padded < channels) padded += caq_block(isa, channels - padded);
    return padded;
}

/* Bytes of an item of a sample. */
CAQ_INLINE int64_t caq_item_bytes(const caq_program *p) { return p->dtype == 0 ? 1 : p->dtype == 1 ? 2 : 4; }

CAQ_INLINE int32_t caq_clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

/* quant.requantize; the first sum wraps in no case that the graph admits, and may in a channel that is filled up. */
CAQ_INLINE int32_t caq_requantize(int32_t accumulator, int32_t bias, int32_t pre, int32_t multiplier, int32_t offset,
                                  int32_t post) {
    const int32_t t = (int32_t)((uint32_t)accumulator + (uint32_t)bias) >> pre;
    return (caq_clamp(t, -32768, 32767) * multiplier + offset) >> post;
}

#endif
