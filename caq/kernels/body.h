/* The body of every kernel, for all widths and instruction sets. A file that includes it says first what it computes with:
 *
 *     LANES            int32 lanes of a vector
 *     vec              LANES int32
 *     operand          4 input bytes, ready to be multiplied with the weights of every lane
 *     BROADCAST(p)     the operand of 4 bytes at p
 *     DOT(a, x, w)     a + the products of operand x with LANES x 4 weights at w, summed by fours
 *     STORE(p, v)      of vec at an int32_t pointer
 *     ZERO             a vec of zeros
 *     SELF             its table
 *     NR, MR           channels and pixels of a tile
 *
 * Accumulators are stored to a buffer and finished there by plain loops, which compilers turn into vectors.
 */
#include "loops.h"

#include <string.h>

static int body_encode(const caq_program *p, const uint8_t *x, uint8_t *y, int64_t n) {
    const int64_t period = p->scaling_period, item = caq_item_bytes(p);
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i += period)
        bad |= encode_part(p, x + i * item, 0, n - i < period ? n - i : period, y + i);
    return bad != 0;
}

/* The prepared requantization: five rows of int32, channels filled up to whole blocks, group by group. */
static int64_t body_requantize_bytes(const caq_conv *c) {
    const int depthwise = caq_is_depthwise(c);
    const int64_t n = depthwise ? c->out_channels : (int64_t)c->groups * caq_padded(&SELF, c->out_channels / c->groups);
    return 5 * n * (int64_t)sizeof(int32_t);
}

static void body_requantize(const caq_conv *c, const int32_t *five, const int32_t *sums, int32_t zero, void *out) {
    const int groups = caq_is_depthwise(c) ? 1 : c->groups;
    const int n = c->out_channels, per_group = n / groups;
    const int padded = caq_is_depthwise(c) ? per_group : caq_padded(&SELF, per_group);
    int32_t *rows = out;
    for (int row = 0; row < 5; row++)
        for (int g = 0; g < groups; g++)
            for (int i = 0; i < padded; i++) {
                const int channel = g * per_group + i;
                int32_t v = i < per_group ? five[row * n + channel] : 0;
                if (row == 0 && i < per_group) v = (int32_t)((uint32_t)v - (uint32_t)zero * (uint32_t)sums[channel]);
                rows[((int64_t)row * groups + g) * padded + i] = v;
            }
}

static void body_add(const caq_sum *s, const uint8_t *a, int32_t a_zero, const uint8_t *b, int32_t b_zero, uint8_t *y,
                     int32_t y_zero, int64_t n) {
    const int32_t k = s->multiplier[0], l = s->multiplier[1], shift = s->shift, low = s->low, high = s->high;
    const int32_t offset = (int32_t)((uint32_t)s->offset - (uint32_t)(a_zero * k) - (uint32_t)(b_zero * l));
    for (int64_t i = 0; i < n; i++) {
        const int32_t sum = (int32_t)((uint32_t)(a[i] * k) + (uint32_t)(b[i] * l) + (uint32_t)offset);
        y[i] = (uint8_t)(caq_clamp(sum >> shift, low, high) + y_zero);
    }
}

static void body_lookup(const uint8_t *x, const uint8_t *table, uint8_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = table[x[i]];
}

/* Accumulators of `n` channels of one pixel become its codes at y. `first`: their place among the rows' `stride`. */
CAQ_INLINE void finish(const caq_conv_task *t, const int32_t *acc, int32_t first, int32_t stride, int n, uint8_t *y,
                       const uint8_t *residual) {
    const int32_t *bias = (const int32_t *)t->requantize + first, *pre = bias + stride, *multiplier = pre + stride;
    const int32_t *offset = multiplier + stride, *post = offset + stride;
    const int32_t low = t->low, high = t->high, zero = t->zero;
    if (t->conv->out_bytes == 2) {
        int16_t *wide = (int16_t *)(void *)y;
        for (int i = 0; i < n; i++)
            wide[i] = (int16_t)caq_clamp(caq_requantize(acc[i], bias[i], pre[i], multiplier[i], offset[i], post[i]), low,
                                         high);
        return;
    }
    /* The sum may lie where the residual lies, so the codes wait beside it. */
    uint8_t codes[CAQ_MAX_NR], *to = t->sum ? codes : y;
    for (int i = 0; i < n; i++)
        to[i] = (uint8_t)(caq_clamp(caq_requantize(acc[i], bias[i], pre[i], multiplier[i], offset[i], post[i]), low, high)
                          + zero);
    if (t->sum) body_add(t->sum, codes, zero, residual, t->residual_zero, y, t->sum_zero, n);
    if (t->narrow) body_lookup(y, t->narrow, y, n);
}

CAQ_INLINE void tile(const caq_conv_task *t, const caq_runs *r, const int8_t *panel, const uint8_t *const *p, const int mr,
                     int32_t *buffer) {
    enum { VECTORS = NR / LANES };
    const caq_window *w = &t->conv->window;
    vec acc[MR][VECTORS];
    CAQ_UNROLL for (int i = 0; i < mr; i++)
        CAQ_UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = ZERO;
    for (int ky = 0; ky < r->rows; ky++)
        for (int kx = 0; kx < r->columns; kx++) {
            const int64_t start = (int64_t)ky * w->dilation_h * t->x_row + (int64_t)kx * r->column_step;
            for (int64_t k = start; k < start + 4 * r->quads; k += 4, panel += 4 * NR)
                CAQ_UNROLL for (int i = 0; i < mr; i++) {
                    const operand x = BROADCAST(p[i] + k);
                    CAQ_UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = DOT(acc[i][v], x, panel + 4 * LANES * v);
                }
        }
    CAQ_UNROLL for (int i = 0; i < mr; i++)
        CAQ_UNROLL for (int v = 0; v < VECTORS; v++) STORE(buffer + i * NR + v * LANES, acc[i][v]);
}

static void body_conv(const caq_conv_task *t, int64_t first, int64_t last, int32_t from, int32_t to) {
    const caq_conv *c = t->conv;
    const caq_runs r = caq_runs_of(c);
    const int per_group = c->out_channels / c->groups, padded = caq_padded(&SELF, per_group);
    const int64_t block_bytes = (int64_t)r.rows * r.columns * r.quads * 4 * NR;
    const int x_step = c->window.stride_w * c->in_channels;
    const int8_t *panel = t->panel + (from - t->begin) / NR * block_bytes;
    int32_t buffer[MR * NR];
    for (int g = 0; g < c->groups; g++)
        for (int n = from; n < to; n += NR, panel += block_bytes) {
            const int channels = per_group - n < NR ? per_group - n : NR;
            const int64_t channel = (int64_t)g * per_group + n;
            for (int64_t m = first; m < last; m += MR) {
                const int count = last - m < MR ? (int)(last - m) : MR;
                const uint8_t *p[MR], *residual[MR];
                uint8_t *y[MR];
                for (int i = 0; i < count; i++) {
                    const int64_t row = (m + i) / t->y_w, column = (m + i) % t->y_w;
                    p[i] = t->x + row * c->window.stride_h * t->x_row + column * x_step
                           + (int64_t)g * (c->in_channels / c->groups);
                    y[i] = t->y + row * t->y_row + (column * c->out_channels + channel) * c->out_bytes;
                    residual[i] = t->sum ? t->residual + row * t->residual_row + column * c->out_channels + channel : 0;
                }
                if (count == MR)
                    tile(t, &r, panel, p, MR, buffer);
                else
                    for (int i = 0; i < count; i++) tile(t, &r, panel, p + i, 1, buffer + i * NR);
                for (int i = 0; i < count; i++)
                    finish(t, buffer + i * NR, g * padded + n, c->groups * padded, channels, y[i], residual[i]);
            }
        }
}

static int64_t body_panel_bytes(const caq_conv *c, int width) {
    (void)width;
    if (caq_is_depthwise(c)) return (int64_t)c->window.kernel_h * c->window.kernel_w * c->out_channels;
    const caq_runs r = caq_runs_of(c);
    return (int64_t)c->groups * caq_padded(&SELF, c->out_channels / c->groups) * r.rows * r.columns * r.quads * 4;
}

/* Depthwise: taps (kernel_h, kernel_w, channels), as the pixels lie. */
static void body_panel(const caq_conv *c, int width, const int8_t *m, int8_t *panel) {
    (void)width;
    const caq_runs r = caq_runs_of(c);
    const int taps = r.rows * r.columns, per_group = c->out_channels / c->groups, whole = r.length / 4, rest = r.length % 4;
    if (caq_is_depthwise(c)) {
        for (int channel = 0; channel < c->out_channels; channel++)
            for (int tap = 0; tap < taps; tap++) panel[(int64_t)tap * c->out_channels + channel] = m[channel * taps + tap];
        return;
    }
    for (int g = 0; g < c->groups; g++)
        for (int n = 0; n < per_group; n += NR) {
            const int64_t bytes = (int64_t)taps * r.quads * 4 * NR;
            memset(panel, 0, (size_t)bytes);
            for (int i = 0; i < NR && n + i < per_group; i++) {
                int8_t *to = panel + 4 * i;
                for (int run = 0; run < taps; run++, m += r.length) {
                    for (int q = 0; q < whole; q++, to += 4 * NR) memcpy(to, m + 4 * q, 4);
                    if (rest) {
                        memcpy(to, m + 4 * whole, (size_t)rest);
                        to += 4 * NR;
                    }
                }
            }
            panel += bytes;
        }
}

static void body_depthwise(const caq_conv_task *t, int32_t first, int32_t last) {
    enum { CHUNK = CAQ_MAX_NR };
    const caq_conv *c = t->conv;
    const caq_window *w = &c->window;
    const int channels = c->out_channels;
    int32_t acc[CHUNK];
    for (int row = first; row < last; row++)
        for (int column = 0; column < t->y_w; column++)
            for (int n = 0; n < channels; n += CHUNK) {
                const int count = channels - n < CHUNK ? channels - n : CHUNK;
                const uint8_t *x = t->x + (int64_t)row * w->stride_h * t->x_row + (int64_t)column * w->stride_w * channels + n;
                const int8_t *taps = t->panel + n;
                memset(acc, 0, sizeof acc);
                for (int ky = 0; ky < w->kernel_h; ky++)
                    for (int kx = 0; kx < w->kernel_w; kx++, taps += channels) {
                        const uint8_t *p = x + (int64_t)ky * w->dilation_h * t->x_row + (int64_t)kx * w->dilation_w * channels;
                        for (int i = 0; i < count; i++) acc[i] += (p[i] - SELF.x_zero) * taps[i];
                    }
                finish(t, acc, n, channels, count, t->y + (int64_t)row * t->y_row + (int64_t)column * channels + n,
                       t->sum ? t->residual + (int64_t)row * t->residual_row + (int64_t)column * channels + n : 0);
            }
}

/* quant.unpack and quant.multiplicands: 8 codes a byte of each plane. */
static void body_unpack(const uint8_t *planes, int64_t plane_stride, int width, int64_t count, int8_t *m) {
    for (int64_t i = 0; i < count; i += 8) {
        uint64_t codes = 0; /* a byte each; the sign is the first plane's bit */
        for (int b = 0; b < width; b++) {
            /* Spreads the byte's 8 bits over 8 bytes: each copy of it keeps its own bit, which is then moved to bit 0. */
            uint64_t bits = (uint64_t)planes[b * plane_stride + i / 8] * 0x0101010101010101u & 0x8040201008040201u;
            bits = ((bits + 0x00406070787c7e7fu) >> 7) & 0x0101010101010101u;
            codes = codes << 1 | bits;
        }
        for (int j = 0; j < 8; j++) {
            const int8_t top = (int8_t)((uint8_t)(codes >> (8 * j)) << (8 - width)); /* the code's own 8 bits, the rest 0 */
            /* 2 * (q >> (8 - b)) + 1, and at 8 bits the code itself. */
            m[i + j] = width == 8 ? top : (int8_t)(2 * (top >> (8 - width)) + 1);
        }
    }
}

/* All of them, for a table. */
#define BODY_FUNCTIONS \
    .conv = body_conv, .depthwise = body_depthwise, .unpack = body_unpack, \
    .panel_bytes = body_panel_bytes, .panel = body_panel, .requantize_bytes = body_requantize_bytes, \
    .requantize = body_requantize, .add = body_add, .encode = body_encode, \
    .max_pool = body_max_pool, .sum_pool = body_sum_pool, .lookup = body_lookup
