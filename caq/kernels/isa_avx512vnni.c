/* x86-64 with AVX-512 BW, VL, VBMI and VNNI (Ice Lake, Zen 4 and later).
 *
 * One vpdpbusd does 64 products. Tiles hold up to 24 accumulators: 64 channels x 6 pixels, 32 x 12 or 16 x 12. What ends a
 * tile, `finish`, turns 4 vectors (of 16 channels of one pixel, 32 of two or 16 of four) into 64 codes at once:
 *
 *     accumulators     4 x 16 int32   >> pre_shift
 *     vpackssdw        2 x 32 int16   the saturation to int16; within each 128-bit lane, 4 items of each vector
 *     vpdpwssd         4 x 16 int32   offset + t * multiplier, for the even and the odd items of each
 *     >> post_shift, vpackssdw, vpackus/sswb, vpermb to put the bytes in order
 *
 * Depthwise kernels interleave 4 taps of 64 bytes, so that vpdpbusd sums taps instead of channels.
 *
 * A matrix times a vector waits for its weights, so weights of up to 4 bits stay packed: a byte holds fields of 2 or 4 bits of
 * as many quads, each masked where it stands. Field f makes x * (field << bits * f), summed apart and shifted back, which is
 * exact. The top field is the code q itself, for it has the sign; the others are u = q + h with h = 2^(bits - 1). So
 *
 *     sum of x (2 q + 1) = 2 (sum of x q of the top fields + sum of x u of the others) + sum of x of the top fields
 *                          - (2 h - 1) sum of x of the others
 */
#include "isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
#endif
#include "loops.h"

#include <immintrin.h>
#include <string.h>

#define SELF caq_avx512vnni

/* Requantization of 64 slots: those of 4 accumulators, in the order in which each step of `finish` wants them. */
typedef struct {
    int32_t bias[4][16], pre[4][16];
    /* Of the even items of the first pair of vectors, then of the odd ones; then of the second pair. */
    int16_t multiplier[4][32];
    int32_t offset[4][16], post[4][16];
    /* The shift of all slots, or -1: below 8 bits pre_shift is mostly 0, at 8 bits post_shift is mostly the same. */
    int64_t same_pre, same_post;
} slots;

/* Slot (vector v, lane j) is channel 16 v + j of a block of 64; of narrower blocks, slot % nr. Depthwise slots lie as
 * interleaving leaves them. */
CAQ_INLINE int slot_of(int v, int j, int depthwise) { return depthwise ? 16 * (j / 4) + 4 * v + j % 4 : 16 * v + j; }

/* `channel[slot]`: a column of `five`, or -1. */
static void fill_slots(slots *s, const int *channel, const int32_t *five, int n, const int32_t *sums, int32_t zero,
                       int depthwise) {
    memset(s, 0, sizeof *s);
    s->same_pre = five[n + channel[0]];
    s->same_post = five[4 * n + channel[0]];
    for (int v = 0; v < 4; v++)
        for (int j = 0; j < 16; j++) {
            const int c = channel[slot_of(v, j, depthwise)];
            if (c < 0) continue;
            /* Item j % 4 of a 128-bit lane goes to the even or the odd half, behind the other vector's if v is odd. */
            const int half = 2 * (v / 2) + j % 2, lane = 4 * (j / 4) + 2 * (v % 2) + j % 4 / 2;
            s->bias[v][j] = (int32_t)((uint32_t)five[c] - (uint32_t)zero * (uint32_t)(sums ? sums[c] : 0));
            s->pre[v][j] = five[n + c];
            s->multiplier[half][8 * (j / 4) + 4 * (v % 2) + j % 4] = (int16_t)five[2 * n + c];
            s->offset[half][lane] = five[3 * n + c];
            s->post[half][lane] = five[4 * n + c];
            if (s->same_pre != five[n + c]) s->same_pre = -1;
            if (s->same_post != five[4 * n + c]) s->same_post = -1;
        }
}

/* Lanes of `depthwise` that a vector holds: whole pixels where 64 is a multiple of their channels, else 64 channels. */
CAQ_INLINE int pixels_a_vector(const caq_conv *c) {
    const int n = c->out_channels;
    return n >= 8 && n < 64 && 64 % n == 0 ? 64 / n : 1;
}

static int64_t blocks_of(const caq_conv *c) {
    if (caq_is_depthwise(c)) return (c->out_channels + 63) / 64;
    int64_t blocks = 0;
    for (int n = 0; n < c->out_channels / c->groups; n += caq_block(&SELF, c->out_channels / c->groups - n)) blocks++;
    return blocks * c->groups;
}

static int64_t requantize_bytes(const caq_conv *c) {
    if (c->out_bytes == 2) return (int64_t)5 * c->groups * caq_padded(&SELF, c->out_channels / c->groups) * 4;
    return blocks_of(c) * (int64_t)sizeof(slots);
}

static void requantize(const caq_conv *c, const int32_t *five, const int32_t *sums, int32_t zero, void *out) {
    slots *s = out;
    int channel[64];
    const int n = c->out_channels;
    if (c->out_bytes == 2) {
        /* Five rows of int32, each group filled up to whole blocks. */
        const int per_group = n / c->groups, padded = caq_padded(&SELF, per_group);
        int32_t *rows = out;
        for (int row = 0; row < 5; row++)
            for (int i = 0; i < c->groups * padded; i++) {
                const int inside = i % padded, k = i / padded * per_group + inside;
                int32_t v = inside < per_group ? five[row * n + k] : 0;
                if (row == 0 && inside < per_group && sums) v = (int32_t)((uint32_t)v - (uint32_t)zero * (uint32_t)sums[k]);
                *rows++ = v;
            }
    } else if (caq_is_depthwise(c)) {
        const int pixels = pixels_a_vector(c);
        for (int first = 0; first < n; first += 64, s++) {
            for (int i = 0; i < 64; i++) channel[i] = pixels > 1 ? i % n : first + i < n ? first + i : -1;
            fill_slots(s, channel, five, n, sums, zero, 1);
        }
    } else {
        const int per_group = n / c->groups;
        for (int g = 0; g < c->groups; g++)
            for (int first = 0, nr; first < per_group; first += nr, s++) {
                nr = caq_block(&SELF, per_group - first);
                for (int i = 0; i < 64; i++) {
                    const int k = first + i % nr;
                    channel[i] = k < per_group ? g * per_group + k : -1;
                }
                fill_slots(s, channel, five, n, sums, zero, 0);
            }
    }
}

/* What comes after the accumulators, in registers. */
typedef struct {
    __m512i order, low, high;
    int is_signed, clamps_low, clamps_high; /* packing clamps to 8 bits anyway */
    const uint8_t *narrow;
} ending;

/* Byte i of the result is byte ORDER[depthwise][i] of the packed vectors: slot_of(v, j) is
 * 16 (j / 4) + 8 (v / 2) + 4 (j % 2) + 2 (v % 2) + j % 4 / 2. */
static const uint8_t ORDER[2][64] = {
    { 0,  4,  1,  5, 16, 20, 17, 21, 32, 36, 33, 37, 48, 52, 49, 53,
      2,  6,  3,  7, 18, 22, 19, 23, 34, 38, 35, 39, 50, 54, 51, 55,
      8, 12,  9, 13, 24, 28, 25, 29, 40, 44, 41, 45, 56, 60, 57, 61,
     10, 14, 11, 15, 26, 30, 27, 31, 42, 46, 43, 47, 58, 62, 59, 63},
    { 0,  4,  1,  5,  2,  6,  3,  7,  8, 12,  9, 13, 10, 14, 11, 15,
     16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31,
     32, 36, 33, 37, 34, 38, 35, 39, 40, 44, 41, 45, 42, 46, 43, 47,
     48, 52, 49, 53, 50, 54, 51, 55, 56, 60, 57, 61, 58, 62, 59, 63},
};

CAQ_INLINE ending ending_of(const caq_conv_task *t, int depthwise) {
    ending e;
    e.order = _mm512_loadu_si512(ORDER[depthwise]);
    e.low = _mm512_set1_epi8((char)(t->low + t->zero));
    e.high = _mm512_set1_epi8((char)(t->high + t->zero));
    e.is_signed = t->zero != 0;
    e.clamps_low = t->low + t->zero > 0;
    e.clamps_high = t->high + t->zero < 255;
    e.narrow = t->narrow;
    return e;
}

/* What `slots` say of shifts, in registers, so that a compiler takes the decisions out of loops. */
typedef struct {
    __m128i post;
    int pre_shifts, same_post;
} shifts;

CAQ_INLINE shifts shifts_of(const slots *s) {
    return (shifts){_mm_cvtsi64_si128(s->same_post), s->same_pre != 0, s->same_post >= 0};
}

/* The two int16 vectors that two accumulators become: even and odd items, 32-bit, shifted. */
CAQ_INLINE __m512i half(__m512i a, __m512i b, const slots *s, const shifts *by, int pair) {
    if (by->pre_shifts) {
        a = _mm512_srav_epi32(a, _mm512_loadu_si512(s->pre[2 * pair]));
        b = _mm512_srav_epi32(b, _mm512_loadu_si512(s->pre[2 * pair + 1]));
    }
    const __m512i t = _mm512_packs_epi32(a, b);
    const __m512i e = _mm512_dpwssd_epi32(_mm512_loadu_si512(s->offset[2 * pair]), t, _mm512_loadu_si512(s->multiplier[2 * pair]));
    const __m512i o =
        _mm512_dpwssd_epi32(_mm512_loadu_si512(s->offset[2 * pair + 1]), t, _mm512_loadu_si512(s->multiplier[2 * pair + 1]));
    if (by->same_post) return _mm512_packs_epi32(_mm512_sra_epi32(e, by->post), _mm512_sra_epi32(o, by->post));
    return _mm512_packs_epi32(_mm512_srav_epi32(e, _mm512_loadu_si512(s->post[2 * pair])),
                              _mm512_srav_epi32(o, _mm512_loadu_si512(s->post[2 * pair + 1])));
}

CAQ_INLINE __m512i requantized(__m512i a, __m512i b, __m512i c, __m512i d, const slots *s, const shifts *by, const ending *e) {
    const __m512i first = half(a, b, s, by, 0), second = half(c, d, s, by, 1);
    const __m512i y = e->is_signed ? _mm512_xor_si512(_mm512_packs_epi16(first, second), _mm512_set1_epi8(-128))
                                   : _mm512_packus_epi16(first, second);
    __m512i ordered = _mm512_permutexvar_epi8(e->order, y);
    if (e->clamps_low) ordered = _mm512_max_epu8(ordered, e->low);
    if (e->clamps_high) ordered = _mm512_min_epu8(ordered, e->high);
    return ordered;
}

typedef struct {
    __m512i part[4];
} table;

CAQ_INLINE table table_of(const uint8_t *codes) {
    table t;
    CAQ_UNROLL for (int i = 0; i < 4; i++) t.part[i] = _mm512_loadu_si512(codes + 64 * i);
    return t;
}

CAQ_INLINE __m512i looked_up(__m512i x, const table *t) {
    const __m512i low = _mm512_permutex2var_epi8(t->part[0], x, t->part[1]);
    const __m512i high = _mm512_permutex2var_epi8(t->part[2], x, t->part[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(x), high);
}

static void lookup(const uint8_t *x, const uint8_t *codes, uint8_t *y, int64_t n) {
    const table t = table_of(codes);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) _mm512_storeu_si512(y + i, looked_up(_mm512_loadu_si512(x + i), &t));
    if (i < n) {
        const __mmask64 rest = ~0ull >> (64 - (n - i));
        _mm512_mask_storeu_epi8(y + i, rest, looked_up(_mm512_maskz_loadu_epi8(rest, x + i), &t));
    }
}

/* A residual add of 64 codes. */
typedef struct {
    __m512i pair, offset, low, high;
    __m128i shift;
    int is_signed;
} adder;

CAQ_INLINE adder adder_of(const caq_sum *s, int32_t a_zero, int32_t b_zero, int32_t zero) {
    const int32_t k = s->multiplier[0], l = s->multiplier[1];
    adder r;
    r.pair = _mm512_set1_epi32((int32_t)((uint32_t)l << 16 | (uint32_t)k));
    r.offset = _mm512_set1_epi32((int32_t)((uint32_t)s->offset - (uint32_t)(a_zero * k) - (uint32_t)(b_zero * l)));
    r.shift = _mm_cvtsi32_si128(s->shift);
    r.low = _mm512_set1_epi8((char)(s->low + zero));
    r.high = _mm512_set1_epi8((char)(s->high + zero));
    r.is_signed = zero != 0;
    return r;
}

CAQ_INLINE __m512i added_words(__m512i a, __m512i b, const adder *r) {
    const __m512i low = _mm512_dpwssd_epi32(r->offset, _mm512_unpacklo_epi16(a, b), r->pair);
    const __m512i high = _mm512_dpwssd_epi32(r->offset, _mm512_unpackhi_epi16(a, b), r->pair);
    return _mm512_packs_epi32(_mm512_sra_epi32(low, r->shift), _mm512_sra_epi32(high, r->shift));
}

CAQ_INLINE __m512i added(__m512i a, __m512i b, const adder *r) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low = added_words(_mm512_unpacklo_epi8(a, zero), _mm512_unpacklo_epi8(b, zero), r);
    const __m512i high = added_words(_mm512_unpackhi_epi8(a, zero), _mm512_unpackhi_epi8(b, zero), r);
    const __m512i y = r->is_signed ? _mm512_xor_si512(_mm512_packs_epi16(low, high), _mm512_set1_epi8(-128))
                                   : _mm512_packus_epi16(low, high);
    return _mm512_min_epu8(_mm512_max_epu8(y, r->low), r->high);
}

static void add(const caq_sum *s, const uint8_t *a, int32_t a_zero, const uint8_t *b, int32_t b_zero, uint8_t *y,
                int32_t zero, int64_t n) {
    const adder r = adder_of(s, a_zero, b_zero, zero);
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 mask = n - i >= 64 ? ~0ull : ~0ull >> (64 - (n - i));
        const __m512i sum = added(_mm512_maskz_loadu_epi8(mask, a + i), _mm512_maskz_loadu_epi8(mask, b + i), &r);
        if (n - i >= 64)
            _mm512_storeu_si512(y + i, sum);
        else
            _mm512_mask_storeu_epi8(y + i, mask, sum);
    }
}

/* Products of one tile: nv vectors, mr pixels. */
CAQ_INLINE void accumulate(const caq_conv_task *t, const caq_runs *r, const int8_t *panel, const uint8_t *const *p,
                           const int nv, const int mr, __m512i *acc) {
    const caq_window *w = &t->conv->window;
    CAQ_UNROLL for (int i = 0; i < mr * nv; i++) acc[i] = _mm512_setzero_si512();
    for (int ky = 0; ky < r->rows; ky++)
        for (int kx = 0; kx < r->columns; kx++) {
            const int64_t start = (int64_t)ky * w->dilation_h * t->x_row + (int64_t)kx * r->column_step;
            for (int64_t k = start; k < start + 4 * r->quads; k += 4, panel += 64 * nv) {
                __m512i weights[4];
                CAQ_UNROLL for (int v = 0; v < nv; v++) weights[v] = _mm512_loadu_si512(panel + 64 * v);
                CAQ_UNROLL for (int i = 0; i < mr; i++) {
                    int32_t four;
                    memcpy(&four, p[i] + k, sizeof four);
                    const __m512i x = _mm512_set1_epi32(four);
                    CAQ_UNROLL for (int v = 0; v < nv; v++) acc[i * nv + v] = _mm512_dpbusd_epi32(acc[i * nv + v], x, weights[v]);
                }
            }
        }
}

/* Products of one pixel. Narrow tiles take several quads at a time, each with accumulators of its own, as a sum waits for the one
 * before it. */
CAQ_INLINE void accumulate_pixel(const caq_conv_task *t, const caq_runs *r, const int8_t *panel, const uint8_t *x, const int nv,
                                 __m512i *acc) {
    enum { MOST = 4 };
    const caq_window *w = &t->conv->window;
    const int chains = MOST / nv;
    __m512i part[MOST];
    CAQ_UNROLL for (int i = 0; i < MOST; i++) part[i] = _mm512_setzero_si512();
    for (int ky = 0; ky < r->rows; ky++)
        for (int kx = 0; kx < r->columns; kx++) {
            const uint8_t *p = x + (int64_t)ky * w->dilation_h * t->x_row + (int64_t)kx * r->column_step;
            for (int left = r->quads; left > 0; left -= chains, p += 4 * chains)
                CAQ_UNROLL for (int i = 0; i < chains; i++)
                    if (i < left) {
                        int32_t four;
                        memcpy(&four, p + 4 * i, sizeof four);
                        const __m512i bytes = _mm512_set1_epi32(four);
                        CAQ_UNROLL for (int v = 0; v < nv; v++, panel += 64)
                            part[i * nv + v] = _mm512_dpbusd_epi32(part[i * nv + v], bytes, _mm512_loadu_si512(panel));
                    }
        }
    CAQ_UNROLL for (int i = MOST - 1; i >= nv; i--) part[i - nv] = _mm512_add_epi32(part[i - nv], part[i]);
    CAQ_UNROLL for (int v = 0; v < nv; v++) acc[v] = part[v];
}

/* Bits of a packed field, or 0 where weights are not packed. */
CAQ_INLINE int packed_bits(const caq_conv *c, int width) {
    if (!c->one_pixel || c->groups > 1 || c->window.kernel_h * c->window.kernel_w > 1 || width > 4) return 0;
    return width > 2 ? 4 : 2;
}

/* Sums of the input bytes: those of quads in top fields, and all others. */
typedef struct {
    int32_t top, others;
} byte_sums;

CAQ_INLINE byte_sums sums_of(const uint8_t *x, int64_t n, int bits) {
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i tops = _mm512_maskz_mov_epi32(bits == 2 ? 0x8888 : 0xaaaa, ones); /* the last of 4 quads, or of 2 */
    __m512i all = _mm512_setzero_si512(), top = all;
    for (int64_t i = 0; i < n; i += 64) {
        const __m512i v = _mm512_maskz_loadu_epi8(n - i >= 64 ? ~0ull : ~0ull >> (64 - (n - i)), x + i);
        all = _mm512_dpbusd_epi32(all, v, ones);
        top = _mm512_dpbusd_epi32(top, v, tops);
    }
    const int32_t of_tops = _mm512_reduce_add_epi32(top);
    return (byte_sums){of_tops, _mm512_reduce_add_epi32(all) - of_tops};
}

/* Products of one pixel with packed weights. */
CAQ_INLINE void accumulate_packed(const caq_runs *r, const int8_t *panel, const uint8_t *x, const byte_sums *sums, const int nv,
                                  const int bits, __m512i *acc) {
    enum { MOST_FIELDS = 4 };
    const int fields = 8 / bits;
    __m512i part[4][MOST_FIELDS], mask[MOST_FIELDS];
    CAQ_UNROLL for (int f = 0; f < fields; f++) {
        mask[f] = _mm512_set1_epi8((char)(((1 << bits) - 1) << bits * f));
        CAQ_UNROLL for (int v = 0; v < nv; v++) part[v][f] = _mm512_setzero_si512();
    }
    for (int q = 0; q < r->quads; q += fields, x += 4 * fields, panel += 64 * nv) {
        __m512i weights[4];
        CAQ_UNROLL for (int v = 0; v < nv; v++) weights[v] = _mm512_loadu_si512(panel + 64 * v);
        CAQ_UNROLL for (int f = 0; f < fields; f++) {
            int32_t four;
            memcpy(&four, x + 4 * f, sizeof four);
            const __m512i bytes = _mm512_set1_epi32(four);
            CAQ_UNROLL for (int v = 0; v < nv; v++)
                part[v][f] = _mm512_dpbusd_epi32(part[v][f], bytes, _mm512_and_si512(weights[v], mask[f]));
        }
    }
    const __m512i rest = _mm512_set1_epi32(sums->top - ((1 << bits) - 1) * sums->others);
    CAQ_UNROLL for (int v = 0; v < nv; v++) {
        __m512i total = part[v][0];
        CAQ_UNROLL for (int f = 1; f < fields; f++) total = _mm512_add_epi32(total, _mm512_srai_epi32(part[v][f], (unsigned)(bits * f)));
        acc[v] = _mm512_add_epi32(_mm512_add_epi32(total, total), rest);
    }
}

/* Bytes of one block's panel. */
CAQ_INLINE int64_t block_bytes(const caq_runs *r, int nr, int bits) {
    if (bits) return (int64_t)((r->quads + 8 / bits - 1) / (8 / bits)) * 4 * nr;
    return (int64_t)r->rows * r->columns * r->quads * 4 * nr;
}

/* 64 codes go to 4 / nv pixels of 16 nv channels, of which `channels` exist and `count` pixels are wanted. */
CAQ_INLINE void write(const caq_conv_task *t, const table *narrow, const adder *r, __m512i y, const int nv, int channels, int count,
                      uint8_t *const *to, const uint8_t *const *residual) {
    enum { MOST = 4 };
    const int step = 16 * nv, most = MOST / nv, pixels = most < count ? most : count;
    const int64_t whole = (int64_t)(most - 1) * step;
    if (channels == step && pixels == most && to[most - 1] - to[0] == whole
        && (!t->sum || residual[most - 1] - residual[0] == whole)) {
        if (t->sum) y = added(y, _mm512_loadu_si512(residual[0]), r);
        if (narrow) y = looked_up(y, narrow);
        _mm512_storeu_si512(to[0], y);
        return;
    }
    const __mmask64 mask = channels >= 64 ? ~0ull : (1ull << channels) - 1;
    if (t->sum) {
        uint8_t other[64];
        for (int i = 0; i < pixels; i++)
            _mm512_mask_storeu_epi8(other + i * step, mask, _mm512_maskz_loadu_epi8(mask, residual[i]));
        y = added(y, _mm512_loadu_si512(other), r);
    }
    if (narrow) y = looked_up(y, narrow);
    /* Masked stores are slow, and what they wrote is slow to read. */
    CAQ_UNROLL for (int i = 0; i < most; i++)
        if (i < pixels) {
            const __m128i quarter = i == 0   ? _mm512_castsi512_si128(y)
                                    : i == 1 ? _mm512_extracti32x4_epi32(y, 1)
                                    : i == 2 ? _mm512_extracti32x4_epi32(y, 2)
                                             : _mm512_extracti32x4_epi32(y, 3);
            const __m256i part = i == 0 ? _mm512_castsi512_si256(y) : _mm512_extracti64x4_epi64(y, 1);
            if (nv == 4) _mm512_mask_storeu_epi8(to[0], mask, y);
            if (nv == 2 && channels == step) _mm256_storeu_si256((__m256i *)(void *)to[i], part);
            if (nv == 2 && channels < step) _mm256_mask_storeu_epi8(to[i], (__mmask32)mask, part);
            if (nv == 1 && channels == step) _mm_storeu_si128((__m128i *)(void *)to[i], quarter);
            if (nv == 1 && channels < step) _mm_mask_storeu_epi8(to[i], (__mmask16)mask, quarter);
        }
}

/* 16-bit outputs: five rows of `stride`, in the channels' own order. */
CAQ_INLINE void write_wide(const caq_conv_task *t, const int32_t *rows, int64_t stride, __m512i acc, int channels, uint8_t *y) {
    const __m512i a = _mm512_add_epi32(acc, _mm512_loadu_si512(rows));
    const __m512i top = _mm512_set1_epi32(32767), bottom = _mm512_set1_epi32(-32768);
    __m512i v = _mm512_srav_epi32(a, _mm512_loadu_si512(rows + stride));
    v = _mm512_max_epi32(_mm512_min_epi32(v, top), bottom);
    v = _mm512_add_epi32(_mm512_mullo_epi32(v, _mm512_loadu_si512(rows + 2 * stride)), _mm512_loadu_si512(rows + 3 * stride));
    v = _mm512_srav_epi32(v, _mm512_loadu_si512(rows + 4 * stride));
    v = _mm512_max_epi32(_mm512_min_epi32(v, _mm512_set1_epi32(t->high)), _mm512_set1_epi32(t->low));
    if (channels >= 16)
        _mm256_storeu_si256((__m256i *)(void *)y, _mm512_cvtepi32_epi16(v));
    else
        _mm256_mask_storeu_epi16(y, (__mmask16)((1u << channels) - 1), _mm512_cvtepi32_epi16(v));
}

typedef struct {
    const caq_conv_task *task;
    const caq_runs *runs;
    const int8_t *panel;
    const slots *s;      /* of this block, or */
    const int32_t *wide; /* its rows for 16-bit outputs */
    int64_t wide_stride;
    const ending *e;
    const adder *r;
    const byte_sums *sums; /* of the input, for packed weights */
    int channels;
} block;

/* What ends a tile of mr pixels, of which `count` are there; mr is a multiple of 4 / nv. */
CAQ_INLINE void end_tile(const block *b, const int nv, const int mr, __m512i *acc, uint8_t *const *to, const uint8_t *const *residual,
                         int count) {
    if (b->wide) {
        CAQ_UNROLL for (int i = 0; i < mr; i++)
            if (i < count)
                CAQ_UNROLL for (int v = 0; v < nv; v++)
                    if (16 * v < b->channels)
                        write_wide(b->task, b->wide + 16 * v, b->wide_stride, acc[i * nv + v], b->channels - 16 * v, to[i] + 32 * v);
        return;
    }
    const shifts by = shifts_of(b->s);
    table narrow;
    if (b->e->narrow) narrow = table_of(b->e->narrow);
    CAQ_UNROLL for (int i = 0; i < mr; i += 4 / nv)
        if (i < count) {
            __m512i *a = acc + i * nv;
            CAQ_UNROLL for (int v = 0; v < 4; v++) a[v] = _mm512_add_epi32(a[v], _mm512_loadu_si512(b->s->bias[v]));
            write(b->task, b->e->narrow ? &narrow : 0, b->r, requantized(a[0], a[1], a[2], a[3], b->s, &by, b->e), nv, b->channels,
                  count - i, to + i, residual + i);
        }
}

CAQ_INLINE void tile(const block *b, const int nv, const int mr, const uint8_t *const *p, uint8_t *const *to,
                     const uint8_t *const *residual, int count) {
    __m512i acc[24];
    accumulate(b->task, b->runs, b->panel, p, nv, mr, acc);
    end_tile(b, nv, mr, acc, to, residual, count);
}

/* One pixel; bits: of packed weights, or 0. */
CAQ_INLINE void pixel_tile(const block *b, const int nv, const int bits, const uint8_t *x, uint8_t *to, const uint8_t *residual) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i acc[4] = {zero, zero, zero, zero};
    if (bits)
        accumulate_packed(b->runs, b->panel, x, b->sums, nv, bits, acc);
    else
        accumulate_pixel(b->task, b->runs, b->panel, x, nv, acc);
    end_tile(b, nv, 4 / nv, acc, &to, &residual, 1);
}

static void tile_pixel(const block *b, int nr, int bits, const uint8_t *x, uint8_t *to, const uint8_t *residual) {
    switch (nr + bits) {
    case 64: pixel_tile(b, 4, 0, x, to, residual); break;
    case 64 + 2: pixel_tile(b, 4, 2, x, to, residual); break;
    case 64 + 4: pixel_tile(b, 4, 4, x, to, residual); break;
    case 32: pixel_tile(b, 2, 0, x, to, residual); break;
    case 32 + 2: pixel_tile(b, 2, 2, x, to, residual); break;
    case 32 + 4: pixel_tile(b, 2, 4, x, to, residual); break;
    case 16: pixel_tile(b, 1, 0, x, to, residual); break;
    case 16 + 2: pixel_tile(b, 1, 2, x, to, residual); break;
    default: pixel_tile(b, 1, 4, x, to, residual);
    }
}

/* A matrix times a vector. bits: of packed weights, or 0. Layers are small here, and what a call costs shows, so whole
 * blocks are done in this very function. */
CAQ_INLINE void linear(const caq_conv_task *t, int32_t from, int32_t to, const int bits) {
    enum { WHOLE = CAQ_MAX_NR };
    const caq_conv *c = t->conv;
    const caq_runs r = caq_runs_of(c);
    const int n = c->out_channels, wide = c->out_bytes == 2;
    const int64_t bytes = block_bytes(&r, WHOLE, bits);
    const ending e = ending_of(t, 0);
    adder adds;
    if (t->sum) adds = adder_of(t->sum, t->zero, t->residual_zero, t->sum_zero);
    byte_sums sums;
    if (bits) sums = sums_of(t->x, r.length, bits);
    const slots *s = wide ? 0 : (const slots *)t->requantize + from / WHOLE;
    block b = {.task = t, .runs = &r, .panel = t->panel, .e = &e, .r = t->sum ? &adds : 0, .sums = &sums, .channels = WHOLE};
    b.panel += (from - t->begin) / WHOLE * bytes;
    if (wide) b.wide_stride = caq_padded(&SELF, n);
    int32_t k = from;
    for (; k + WHOLE <= to; k += WHOLE, b.panel += bytes, s++) {
        if (wide)
            b.wide = (const int32_t *)t->requantize + k;
        else
            b.s = s;
        pixel_tile(&b, 4, bits, t->x, t->y + (int64_t)k * c->out_bytes, t->sum ? t->residual + k : 0);
    }
    for (int nr; k < to; k += nr, s++) {
        nr = caq_block(&SELF, n - k);
        block last = b;
        last.channels = n - k < nr ? n - k : nr;
        if (wide)
            last.wide = (const int32_t *)t->requantize + k;
        else
            last.s = s;
        tile_pixel(&last, nr, bits, t->x, t->y + (int64_t)k * c->out_bytes, t->sum ? t->residual + k : 0);
        b.panel += block_bytes(&r, nr, bits);
    }
}

static void linear_8(const caq_conv_task *t, int32_t from, int32_t to) { linear(t, from, to, 0); }

static void linear_4(const caq_conv_task *t, int32_t from, int32_t to) { linear(t, from, to, 4); }

static void linear_2(const caq_conv_task *t, int32_t from, int32_t to) { linear(t, from, to, 2); }

enum { MOST_PIXELS = 8 };

typedef void tiler(const block *b, int mr, const uint8_t *const *p, uint8_t *const *to, const uint8_t *const *residual, int count);

static void tile_64(const block *b, int mr, const uint8_t *const *p, uint8_t *const *to, const uint8_t *const *residual, int count) {
    switch (mr) {
    case 1: tile(b, 4, 1, p, to, residual, count); break;
    case 2: tile(b, 4, 2, p, to, residual, count); break;
    case 3: tile(b, 4, 3, p, to, residual, count); break;
    case 4: tile(b, 4, 4, p, to, residual, count); break;
    case 5: tile(b, 4, 5, p, to, residual, count); break;
    default: tile(b, 4, 6, p, to, residual, count);
    }
}

static void tile_32(const block *b, int mr, const uint8_t *const *p, uint8_t *const *to, const uint8_t *const *residual, int count) {
    switch (mr) {
    case 2: tile(b, 2, 2, p, to, residual, count); break;
    case 4: tile(b, 2, 4, p, to, residual, count); break;
    default: tile(b, 2, 6, p, to, residual, count);
    }
}

static void tile_16(const block *b, int mr, const uint8_t *const *p, uint8_t *const *to, const uint8_t *const *residual, int count) {
    switch (mr) {
    case 4: tile(b, 1, 4, p, to, residual, count); break;
    default: tile(b, 1, 8, p, to, residual, count);
    }
}

static void many_pixels(const caq_conv_task *t, int64_t first, int64_t last, int32_t from, int32_t to) {
    const caq_conv *c = t->conv;
    const caq_runs r = caq_runs_of(c);
    const int per_group = c->out_channels / c->groups, in_group = c->in_channels / c->groups;
    const int64_t padded = caq_padded(&SELF, per_group);
    const int64_t x_step = (int64_t)c->window.stride_w * c->in_channels, y_step = (int64_t)c->out_channels * c->out_bytes;
    const int64_t x_row = (int64_t)c->window.stride_h * t->x_row;
    const ending e = ending_of(t, 0);
    adder adds;
    if (t->sum) adds = adder_of(t->sum, t->zero, t->residual_zero, t->sum_zero);
    block b = {.task = t, .runs = &r, .panel = t->panel, .e = &e, .r = t->sum ? &adds : 0};
    const slots *s = c->out_bytes == 2 ? 0 : (const slots *)t->requantize + from / CAQ_MAX_NR;
    b.panel += (from - t->begin) / CAQ_MAX_NR * block_bytes(&r, CAQ_MAX_NR, 0);
    for (int g = 0; g < c->groups; g++)
        for (int n = from, nr; n < to; n += nr) {
            nr = caq_block(&SELF, per_group - n);
            const int mr = nr == 16 ? 8 : 6, step = 64 / nr;
            tiler *const tile_of = nr == 64 ? tile_64 : nr == 32 ? tile_32 : tile_16;
            const int64_t channel = (int64_t)g * per_group + n;
            b.channels = per_group - n < nr ? per_group - n : nr;
            if (c->out_bytes == 2) {
                b.wide = (const int32_t *)t->requantize + g * padded + n;
                b.wide_stride = c->groups * padded;
            } else {
                b.s = s++;
            }
            int64_t row = first / t->y_w, column = first % t->y_w;
            const uint8_t *p[MOST_PIXELS], *residual[MOST_PIXELS];
            uint8_t *to[MOST_PIXELS];
            for (int64_t m = first; m < last; m += mr) {
                const int count = last - m < mr ? (int)(last - m) : mr;
                const int filled = (count + step - 1) / step * step;
                /* Stretches of the tile that lie in one row; what fills it up repeats the last pixel. */
                for (int i = 0; i < filled;) {
                    const int stretch = i >= count ? filled - i : count - i < t->y_w - column ? count - i : (int)(t->y_w - column);
                    const int64_t at = i >= count ? column - 1 : column, move = i < count;
                    const uint8_t *x = t->x + row * x_row + at * x_step + (int64_t)g * in_group;
                    uint8_t *y = t->y + row * t->y_row + at * y_step + channel * c->out_bytes;
                    for (int k = 0; k < stretch; k++) p[i + k] = x + move * k * x_step;
                    for (int k = 0; k < stretch; k++) to[i + k] = y + move * k * y_step;
                    if (t->sum) {
                        const uint8_t *z = t->residual + row * t->residual_row + at * c->out_channels + channel;
                        for (int k = 0; k < stretch; k++) residual[i + k] = z + move * k * c->out_channels;
                    }
                    i += stretch;
                    column += move * stretch;
                    if (column == t->y_w && i < count) {
                        column = 0;
                        row++;
                    }
                }
                if (column == t->y_w) {
                    column = 0;
                    row++;
                }
                tile_of(&b, filled, p, to, residual, count);
            }
            b.panel += block_bytes(&r, nr, 0);
        }
}

static void conv(const caq_conv_task *t, int64_t first, int64_t last, int32_t from, int32_t to) {
    const int bits = packed_bits(t->conv, t->weight_width);
    if (!t->conv->one_pixel || t->conv->groups > 1)
        many_pixels(t, first, last, from, to);
    else if (bits == 0)
        linear_8(t, from, to);
    else if (bits == 4)
        linear_4(t, from, to);
    else
        linear_2(t, from, to);
}

/* Depthwise panels: for each 64 lanes, for each 4 taps, 4 vectors of 16 lanes x 4 taps. Kernels of 3 rows take the taps by
 * columns, so that what is interleaved for one column of pixels serves all the outputs that it is a part of; others take
 * them as they come. */
CAQ_INLINE int by_columns(const caq_window *w) { return w->kernel_h == 3; }

CAQ_INLINE int tap_quads(const caq_window *w) { return by_columns(w) ? w->kernel_w : (w->kernel_h * w->kernel_w + 3) / 4; }

/* Tap k of quad q as (row, column) in one number, or -1 if there is none. */
CAQ_INLINE int tap_at(const caq_window *w, int q, int k) {
    if (by_columns(w)) return k < 3 ? k * w->kernel_w + q : -1;
    return 4 * q + k < w->kernel_h * w->kernel_w ? 4 * q + k : -1;
}

static int64_t panel_bytes(const caq_conv *c, int width) {
    if (caq_is_depthwise(c)) return blocks_of(c) * tap_quads(&c->window) * 256;
    const caq_runs r = caq_runs_of(c);
    const int per_group = c->out_channels / c->groups, bits = packed_bits(c, width);
    int64_t bytes = 0;
    for (int n = 0, nr; n < per_group; n += nr) {
        nr = caq_block(&SELF, per_group - n);
        bytes += block_bytes(&r, nr, bits);
    }
    return bytes * c->groups;
}

static void conv_panel(const caq_conv *c, const int8_t *m, int8_t *panel) {
    const caq_runs r = caq_runs_of(c);
    const int per_group = c->out_channels / c->groups, whole = r.length / 4, rest = r.length % 4;
    for (int g = 0; g < c->groups; g++)
        for (int n = 0, nr; n < per_group; n += nr) {
            nr = caq_block(&SELF, per_group - n);
            if (per_group - n < nr) memset(panel, 0, (size_t)block_bytes(&r, nr, 0));
            for (int i = 0; i < nr && n + i < per_group; i++) {
                int8_t *to = panel + 4 * i;
                for (int run = 0; run < r.rows * r.columns; run++, m += r.length) {
                    for (int q = 0; q < whole; q++, to += 4 * nr) memcpy(to, m + 4 * q, 4);
                    if (rest) {
                        memset(to, 0, 4);
                        memcpy(to, m + 4 * whole, (size_t)rest);
                        to += 4 * nr;
                    }
                }
            }
            panel += block_bytes(&r, nr, 0);
        }
}

/* Multiplicands m = 2 q + 1 of one channel, as many of 64 as the mask says, to words of fields, `step` bytes apart. */
CAQ_INLINE void pack_fields(const int8_t *m, __mmask64 mask, const int bits, int words, int8_t *to, int64_t step) {
    const int fields = 8 / bits;
    const __m512i shifted = _mm512_srli_epi16(_mm512_maskz_loadu_epi8(mask, m), 1);
    const __m512i q = _mm512_and_si512(shifted, _mm512_set1_epi8((char)((1 << bits) - 1)));
    /* q + h has q's sign bit turned over. */
    const __mmask16 others = bits == 2 ? 0x7777 : 0x5555;
    const __m512i u = _mm512_mask_xor_epi32(q, others, q, _mm512_set1_epi8((char)(1 << (bits - 1))));
    const __m512i by = bits == 2 ? _mm512_set4_epi32(6, 4, 2, 0) : _mm512_set4_epi32(4, 0, 4, 0);
    __m512i v = _mm512_sllv_epi32(_mm512_maskz_mov_epi8(mask, u), by);
    v = _mm512_or_si512(v, _mm512_srli_epi64(v, 32));
    if (fields == 4) v = _mm512_or_si512(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
    int32_t packed[16];
    _mm512_storeu_si512(packed, v);
    for (int i = 0; i < words; i++) memcpy(to + i * step, &packed[fields * i], 4);
}

CAQ_INLINE void packed_panel(const caq_conv *c, const int bits, const int8_t *m, int8_t *panel) {
    const caq_runs r = caq_runs_of(c);
    const int fields = 8 / bits, words = (r.quads + fields - 1) / fields;
    for (int n = 0, nr; n < c->out_channels; n += nr) {
        nr = caq_block(&SELF, c->out_channels - n);
        if (c->out_channels - n < nr) memset(panel, 0, (size_t)block_bytes(&r, nr, bits));
        for (int i = 0; i < nr && n + i < c->out_channels; i++, m += r.length)
            for (int w = 0, k = 0; w < words; w += 16 / fields, k += 64) {
                const int left = words - w < 16 / fields ? words - w : 16 / fields;
                const __mmask64 mask = r.length - k >= 64 ? ~0ull : ~0ull >> (64 - (r.length - k));
                pack_fields(m + k, mask, bits, left, panel + (int64_t)w * 4 * nr + 4 * i, 4 * nr);
            }
        panel += block_bytes(&r, nr, bits);
    }
}

static void panel(const caq_conv *c, int width, const int8_t *m, int8_t *panel) {
    const int bits = packed_bits(c, width);
    if (bits == 2) {
        packed_panel(c, 2, m, panel);
        return;
    }
    if (bits == 4) {
        packed_panel(c, 4, m, panel);
        return;
    }
    if (!caq_is_depthwise(c)) {
        conv_panel(c, m, panel);
        return;
    }
    const int n = c->out_channels, taps = c->window.kernel_h * c->window.kernel_w, pixels = pixels_a_vector(c);
    for (int first = 0; first < n; first += 64)
        for (int q = 0; q < tap_quads(&c->window); q++)
            for (int v = 0; v < 4; v++)
                for (int j = 0; j < 16; j++)
                    for (int k = 0; k < 4; k++, panel++) {
                        const int slot = slot_of(v, j, 1), channel = pixels > 1 ? slot % n : first + slot;
                        const int tap = tap_at(&c->window, q, k);
                        *panel = channel < n && tap >= 0 ? m[channel * taps + tap] : 0;
                    }
}

/* 64 bytes of whole pixels that lie `step` bytes apart; `channels` is 8, 16, 32, or 64 for any number of them. */
CAQ_INLINE __m512i pixels_at(const uint8_t *p, const int channels, int64_t step) {
    if (channels == 64) return _mm512_loadu_si512(p);
    if (channels == 32)
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p)),
                                  _mm256_loadu_si256((const __m256i *)(const void *)(p + step)), 1);
    if (channels == 16) {
        __m128i part[4];
        CAQ_UNROLL for (int i = 0; i < 4; i++) part[i] = _mm_loadu_si128((const __m128i *)(const void *)(p + i * step));
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(part[1], part[0])),
                                  _mm256_set_m128i(part[3], part[2]), 1);
    }
    uint64_t part[8];
    CAQ_UNROLL for (int i = 0; i < 8; i++) memcpy(&part[i], p + i * step, 8);
    return _mm512_set_epi64((int64_t)part[7], (int64_t)part[6], (int64_t)part[5], (int64_t)part[4], (int64_t)part[3],
                            (int64_t)part[2], (int64_t)part[1], (int64_t)part[0]);
}

/* 4 taps of 64 lanes, interleaved: 16 lanes x 4 taps a vector. */
CAQ_INLINE void interleave(__m512i t0, __m512i t1, __m512i t2, __m512i t3, __m512i *out) {
    const __m512i low01 = _mm512_unpacklo_epi8(t0, t1), high01 = _mm512_unpackhi_epi8(t0, t1);
    const __m512i low23 = _mm512_unpacklo_epi8(t2, t3), high23 = _mm512_unpackhi_epi8(t2, t3);
    out[0] = _mm512_unpacklo_epi16(low01, low23);
    out[1] = _mm512_unpackhi_epi16(low01, low23);
    out[2] = _mm512_unpacklo_epi16(high01, high23);
    out[3] = _mm512_unpackhi_epi16(high01, high23);
}

/* What ends 64 accumulators of a depthwise kernel, of which the first `lanes` are there. */
CAQ_INLINE void write_lanes(const caq_conv_task *t, const slots *s, const shifts *by, const ending *e, const table *narrow,
                            const adder *r, const __m512i *acc, uint8_t *y, const uint8_t *residual, int64_t lanes) {
    const __mmask64 mask = lanes >= 64 ? ~0ull : ~0ull >> (64 - lanes);
    __m512i codes = requantized(acc[0], acc[1], acc[2], acc[3], s, by, e);
    if (t->sum) codes = added(codes, _mm512_maskz_loadu_epi8(mask, residual), r);
    if (narrow) codes = looked_up(codes, narrow);
    if (lanes >= 64)
        _mm512_storeu_si512(y, codes);
    else
        _mm512_mask_storeu_epi8(y, mask, codes);
}

typedef struct {
    const caq_conv_task *task;
    const slots *s;
    const int8_t *panel;
    const int64_t *offset; /* of the taps, quad by quad */
    int quads;
    const ending *e;
    const adder *r;
} depthwise_block;

/* 64 lanes at a time, `x_step` apart in the input: `channels` is 64, or fewer where a vector holds several pixels that do not
 * lie together. `rows`: taps of a quad that there are. */
CAQ_INLINE void depthwise_row(const depthwise_block *b, const uint8_t *x, uint8_t *y, const uint8_t *residual, int64_t bytes,
                              int64_t x_step, int64_t pixel_step, const int channels, const int rows) {
    const shifts by = shifts_of(b->s);
    table narrow;
    if (b->e->narrow) narrow = table_of(b->e->narrow);
    for (int64_t i = 0; i < bytes; i += 64, x += x_step) {
        __m512i acc[4], taps[4];
        CAQ_UNROLL for (int v = 0; v < 4; v++) acc[v] = _mm512_loadu_si512(b->s->bias[v]);
        for (int q = 0; q < b->quads; q++) {
            const int64_t *offset = b->offset + 4 * q;
            interleave(pixels_at(x + offset[0], channels, pixel_step), pixels_at(x + offset[1], channels, pixel_step),
                       pixels_at(x + offset[2], channels, pixel_step),
                       rows == 4 ? pixels_at(x + offset[3], channels, pixel_step) : _mm512_setzero_si512(), taps);
            CAQ_UNROLL for (int v = 0; v < 4; v++)
                acc[v] = _mm512_dpbusd_epi32(acc[v], taps[v], _mm512_loadu_si512(b->panel + 256 * q + 64 * v));
        }
        write_lanes(b->task, b->s, &by, b->e, b->e->narrow ? &narrow : 0, b->r, acc, y + i, residual + i, bytes - i);
    }
}

/* A row of 64 channels by a kernel of 3 x 3 with stride 1: each column of pixels is interleaved once. */
CAQ_INLINE void depthwise_3x3(const depthwise_block *b, const uint8_t *x, uint8_t *y, const uint8_t *residual, int64_t columns,
                              int64_t step, int64_t lanes) {
    const int64_t below = b->offset[1], bottom = b->offset[2];
    const shifts by = shifts_of(b->s);
    const __m512i none = _mm512_setzero_si512();
    table narrow;
    if (b->e->narrow) narrow = table_of(b->e->narrow);
    __m512i weights[3][4], left[4], middle[4], right[4], acc[4];
    CAQ_UNROLL for (int q = 0; q < 3; q++)
        CAQ_UNROLL for (int v = 0; v < 4; v++) weights[q][v] = _mm512_loadu_si512(b->panel + 256 * q + 64 * v);
    interleave(_mm512_loadu_si512(x), _mm512_loadu_si512(x + below), _mm512_loadu_si512(x + bottom), none, left);
    x += step;
    interleave(_mm512_loadu_si512(x), _mm512_loadu_si512(x + below), _mm512_loadu_si512(x + bottom), none, middle);
    for (int64_t i = 0; i < columns; i++, y += step, residual += step) {
        x += step;
        interleave(_mm512_loadu_si512(x), _mm512_loadu_si512(x + below), _mm512_loadu_si512(x + bottom), none, right);
        CAQ_UNROLL for (int v = 0; v < 4; v++) {
            acc[v] = _mm512_dpbusd_epi32(_mm512_loadu_si512(b->s->bias[v]), left[v], weights[0][v]);
            acc[v] = _mm512_dpbusd_epi32(acc[v], middle[v], weights[1][v]);
            acc[v] = _mm512_dpbusd_epi32(acc[v], right[v], weights[2][v]);
            left[v] = middle[v];
            middle[v] = right[v];
        }
        write_lanes(b->task, b->s, &by, b->e, b->e->narrow ? &narrow : 0, b->r, acc, y, residual, lanes);
    }
}

static void depthwise(const caq_conv_task *t, int32_t first, int32_t last) {
    const caq_conv *c = t->conv;
    const caq_window *w = &c->window;
    const int n = c->out_channels, pixels = pixels_a_vector(c), quads = tap_quads(w);
    const ending e = ending_of(t, 1);
    adder adds;
    if (t->sum) adds = adder_of(t->sum, t->zero, t->residual_zero, t->sum_zero);
    int64_t offset[2 * CAQ_MOST_TAPS]; /* 3 rows of 21 taps take 4 x 21 */
    for (int i = 0; i < 4 * quads; i++) {
        const int tap = tap_at(w, i / 4, i % 4);
        offset[i] = tap < 0 ? 0 : (int64_t)(tap / w->kernel_w) * w->dilation_h * t->x_row + (int64_t)(tap % w->kernel_w) * w->dilation_w * n;
    }
    const int64_t step = (int64_t)w->stride_w * n;
    const int shared = pixels == 1 && w->kernel_h == 3 && w->kernel_w == 3 && w->stride_w == 1 && w->dilation_w == 1;
    for (int row = first; row < last; row++) {
        const uint8_t *x = t->x + (int64_t)row * w->stride_h * t->x_row;
        uint8_t *y = t->y + (int64_t)row * t->y_row;
        const uint8_t *residual = t->sum ? t->residual + (int64_t)row * t->residual_row : y;
        depthwise_block b = {t, t->requantize, t->panel, offset, quads, &e, t->sum ? &adds : 0};
        if (pixels > 1) {
            const int64_t bytes = (int64_t)t->y_w * n;
            const int together = w->stride_w == 1 ? 64 : n;
            if (together == 64 && by_columns(w))
                depthwise_row(&b, x, y, residual, bytes, pixels * step, step, 64, 3);
            else if (together == 64)
                depthwise_row(&b, x, y, residual, bytes, pixels * step, step, 64, 4);
            else if (together == 32)
                depthwise_row(&b, x, y, residual, bytes, pixels * step, step, 32, 4);
            else if (together == 16)
                depthwise_row(&b, x, y, residual, bytes, pixels * step, step, 16, 4);
            else
                depthwise_row(&b, x, y, residual, bytes, pixels * step, step, 8, 4);
            continue;
        }
        for (int k = 0; k < n; k += 64, b.s++, b.panel += 256 * quads) {
            const int lanes = n - k < 64 ? n - k : 64;
            if (shared)
                depthwise_3x3(&b, x + k, y + k, residual + k, t->y_w, n, lanes);
            else
                for (int column = 0; column < t->y_w; column++)
                    depthwise_row(&b, x + column * step + k, y + (int64_t)column * n + k, residual + (int64_t)column * n + k, lanes,
                                  0, 0, 64, 4);
        }
    }
}

/* Each plane's 64 bits are a mask that puts its bit into 64 codes. */
static void unpack(const uint8_t *planes, int64_t plane_stride, int width, int64_t count, int8_t *m) {
    const int64_t bytes = (count + 7) / 8;
    for (int64_t i = 0; i < count; i += 64) {
        const int64_t left = bytes - i / 8;
        __m512i codes = _mm512_setzero_si512();
        for (int b = 0; b < width; b++) {
            uint64_t bits = 0;
            memcpy(&bits, planes + b * plane_stride + i / 8, left < 8 ? (size_t)left : 8);
            const __mmask64 mask = _cvtu64_mask64(bits);
            codes = _mm512_mask_sub_epi8(_mm512_add_epi8(codes, codes), mask, _mm512_add_epi8(codes, codes), _mm512_set1_epi8(-1));
        }
        if (width < 8) {
            /* The width's own two's complement: the sign bit weighs -2^(width - 1). */
            const __m512i sign = _mm512_set1_epi8((char)(1 << (width - 1)));
            codes = _mm512_sub_epi8(_mm512_xor_si512(codes, sign), sign);
            codes = _mm512_sub_epi8(_mm512_add_epi8(codes, codes), _mm512_set1_epi8(-1));
        }
        _mm512_storeu_si512(m + i, codes);
    }
}

/* 16 items, each an int16 in the low half of its lane and 0 above it, scaled. */
CAQ_INLINE __m512i scaled(__m512i items, const int32_t *multiplier, int64_t period) {
    const __m512i product = _mm512_madd_epi16(items, _mm512_loadu_si512(multiplier));
    return _mm512_srav_epi32(_mm512_add_epi32(product, _mm512_loadu_si512(multiplier + period)),
                             _mm512_loadu_si512(multiplier + 2 * period));
}

/* 8 floats as int32: floor(x * resolution + 1/2), saturated to int16. */
CAQ_INLINE __m256i rounded(__m256 x, const float *resolution) {
    const __m512d product = _mm512_mul_pd(_mm512_cvtps_pd(x), _mm512_cvtps_pd(_mm256_loadu_ps(resolution)));
    __m512d v = _mm512_add_pd(product, _mm512_set1_pd(0.5));
    v = _mm512_min_pd(_mm512_max_pd(v, _mm512_set1_pd(-32768.0)), _mm512_set1_pd(32767.0));
    return _mm512_cvtpd_epi32(_mm512_roundscale_pd(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
}

/* 16 items of a sample as `scaled` wants them; `bad` collects what is not finite. */
CAQ_INLINE __m512i items_of(const uint8_t *x, const int dtype, const float *resolution, __mmask16 *bad) {
    if (dtype == 0) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)x));
    if (dtype == 1) return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)x));
    const __m512 v = _mm512_loadu_ps(x);
    const __mmask16 wrong = _mm512_fpclass_ps_mask(v, 0x99); /* NaN of either kind, infinity of either sign */
    const __m512 finite = _mm512_maskz_mov_ps((__mmask16)~wrong, v);
    *bad |= wrong;
    const __m256i low = rounded(_mm512_castps512_ps256(finite), resolution);
    const __m256i high = rounded(_mm512_extractf32x8_ps(finite, 1), resolution + 8);
    return _mm512_and_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi32(0xffff));
}

CAQ_INLINE uint32_t encode_vectors(const caq_program *p, const uint8_t *x, int64_t count, uint8_t *y, const int dtype) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const int item = dtype == 0 ? 1 : dtype == 1 ? 2 : 4;
    __mmask16 bad = 0;
    for (int64_t i = 0; i < count; i += 64) {
        __m512i v[4];
        CAQ_UNROLL for (int k = 0; k < 4; k++)
            v[k] = scaled(items_of(x + (i + 16 * k) * item, dtype, p->resolution + i + 16 * k, &bad), p->scaling + i + 16 * k,
                          p->scaling_period);
        const __m512i codes = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
        _mm512_storeu_si512(y + i, _mm512_xor_si512(_mm512_permutexvar_epi32(order, codes), _mm512_set1_epi8(-128)));
    }
    return bad;
}

static int encode(const caq_program *p, const uint8_t *x, uint8_t *y, int64_t n) {
    const int64_t period = p->scaling_period, item = caq_item_bytes(p);
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i += period, x += period * item, y += period) {
        const int64_t count = n - i < period ? n - i : period, whole = count / 64 * 64;
        bad |= p->dtype == 0   ? encode_vectors(p, x, whole, y, 0)
               : p->dtype == 1 ? encode_vectors(p, x, whole, y, 1)
                               : encode_vectors(p, x, whole, y, 2);
        bad |= encode_part(p, x + whole * item, whole, count - whole, y + whole);
    }
    return bad != 0;
}

static int runs(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

const caq_isa caq_avx512vnni = {
    .name = "avx512vnni",
    .runs = runs,
    .nr_max = 64,
    .nr_min = 16,
    .x_zero = 0,
    .conv = conv,
    .depthwise = depthwise,
    .unpack = unpack,
    .panel_bytes = panel_bytes,
    .panel = panel,
    .requantize_bytes = requantize_bytes,
    .requantize = requantize,
    .add = add,
    .encode = encode,
    .max_pool = body_max_pool,
    .sum_pool = body_sum_pool,
    .lookup = lookup,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
