/* Random cases. A case depends on its seed alone, by integer arithmetic, so that every machine makes the same ones: no two
 * random numbers are drawn in one expression, whose order a compiler may choose. */
#include "generate.h"

#include <stdlib.h>
#include <string.h>

static uint64_t state;

/* splitmix64 */
static uint64_t next(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int below(int n) { return (int)((next() >> 33) * (uint64_t)n >> 31); }
static int between(int low, int high) { return low + below(high - low + 1); }
static int once_in(int n) { return below(n) == 0; }

void random_bytes(uint64_t seed, uint8_t *p, size_t count) {
    state = seed;
    for (; count >= 8; count -= 8, p += 8) {
        const uint64_t z = next();
        memcpy(p, &z, 8);
    }
    for (uint64_t z = next(); count > 0; count--, z >>= 8) *p++ = (uint8_t)z;
}

static int channels(void) {
    static const int COUNTS[] = {1,  1,  2,  3,  3,  4,  5,  7,  8,  8,  9,  12, 15,  16,  16,  17,
                                 24, 31, 32, 32, 33, 48, 63, 64, 64, 65, 96, 127, 128, 129, 130, 150};
    return COUNTS[below(32)];
}

static int size(void) {
    const int most = once_in(3) ? 12 : 6;
    return between(1, most);
}

/* Multiply-accumulates that a case may take: most are small, so that there can be many. */
static int64_t work(void) {
    const int large = once_in(128);
    return 64 + ((int64_t)1 << (large ? between(15, 21) : between(4, 14)));
}

static int64_t items(const tensor *x) { return (int64_t)x->h * x->w * x->c; }

static void range(tensor *x, int bytes, int is_signed) {
    x->bytes = bytes;
    x->is_signed = is_signed;
    const int full = once_in(2);
    if (bytes == 2) {
        x->low = full ? -32768 : -between(129, 32767);
        x->high = full ? 32767 : between(1, 32766);
    } else if (is_signed) {
        x->low = full ? -128 : -between(1, 128);
        x->high = full ? 127 : between(1, 127);
    } else {
        x->low = 0;
        x->high = full ? 255 : between(1, 255);
    }
}

static void output_range(test_case *t) {
    const int wide = once_in(8), is_signed = once_in(2);
    range(&t->out, wide ? 2 : 1, wide || is_signed);
}

static void halo(tensor *x, const caq_window *padding) {
    const int more = x->bytes == 1 && once_in(3);
    x->top = (padding ? padding->top : 0) + (more ? below(3) : 0);
    x->bottom = (padding ? padding->bottom : 0) + (more ? below(3) : 0);
    x->left = (padding ? padding->left : 0) + (more ? below(3) : 0);
    x->right = (padding ? padding->right : 0) + (more ? below(3) : 0);
}

static void codes(tensor *x) {
    const int64_t count = items(x);
    const int mode = below(8), span = x->high - x->low + 1;
    x->codes = malloc((size_t)count * sizeof *x->codes);
    uint64_t z = 0;
    for (int64_t i = 0; i < count; i++, z >>= 16) {
        if (i % 4 == 0) z = next();
        const int extreme = z & 1 ? x->high : x->low, uniform = x->low + (int)((z & 0xffff) * (uint64_t)span >> 16);
        x->codes[i] = mode == 0 ? x->low : mode == 1 ? x->high : mode == 2 ? extreme : mode == 3 ? (z & 6 ? 0 : extreme) : uniform;
    }
}

/* Makes one side of a tensor as large as its window asks for; returns the output's. */
static int fit(int *length, int before, int after, int kernel, int stride, int dilation) {
    const int extent = (kernel - 1) * dilation + 1;
    if (*length + before + after < extent) *length = extent - before - after;
    return (*length + before + after - extent) / stride + 1;
}

static void fit_window(test_case *t) {
    caq_window *w = &t->window;
    tensor *in = &t->in[0];
    t->out.h = fit(&in->h, w->top, w->bottom, w->kernel_h, w->stride_h, w->dilation_h);
    t->out.w = fit(&in->w, w->left, w->right, w->kernel_w, w->stride_w, w->dilation_w);
}

/* The codes of 8 bits that weights are cut from. */
static void weights(test_case *t) {
    const int64_t per_channel = t->weights / t->out.c;
    const int mode = below(8);
    t->q = malloc((size_t)t->weights);
    uint64_t z = 0;
    for (int64_t i = 0; i < t->weights; i++, z >>= 8) {
        if (i % 8 == 0) z = next();
        const int by_channel = (i / per_channel) & 1;
        t->q[i] = (int8_t)(mode == 0 ? -128 : mode == 1 ? 127 : mode == 2 ? (z & 1 ? 127 : -128) : mode == 3 ? by_channel - 128 * !by_channel : (int)(z & 0xff) - 128);
    }
}

static int log2_of(int64_t v) {
    int n = 0;
    while (v >>= 1) n++;
    return n;
}

static int16_t mantissa(void) {
    const int mode = below(16), v = between(16384, 32767);
    if (mode == 0) return -32768;
    if (mode == 1) return 32767;
    if (mode == 2) return (int16_t)between(-3, 3);
    if (mode == 3) return (int16_t)between(-32768, 32767);
    return (int16_t)(mode & 1 ? -v : v);
}

/* Gains that spread the accumulators over the output's range or beyond it, and now and then anything. */
static void requantization(test_case *t) {
    const int bits = t->out.bytes == 2 ? 15 : 8, wild = below(40);
    const int64_t limit = t->weights / t->out.c << (t->activation_width + t->weight_width - 1);
    t->gain_exponent = bits - log2_of(limit) - 15 + between(-2, 6);
    t->bias_exponent = bits - 15 + between(-3, 2);
    if (wild < 4) t->gain_exponent = between(-50, 0);
    if (wild < 2) t->bias_exponent = between(-25, 10);
    if (wild == 0) {
        t->gain_exponent = between(-100, 100);
        t->bias_exponent = between(-100, 100);
    }
    t->gain = malloc((size_t)t->out.c * sizeof *t->gain);
    t->bias = malloc((size_t)t->out.c * sizeof *t->bias);
    for (int i = 0; i < t->out.c; i++) {
        t->gain[i] = mantissa();
        t->bias[i] = mantissa();
    }
    /* The step of a code of w bits is about 2**(8 - w) codes. */
    t->ratio.mantissa = between(4096, 8191);
    t->ratio.exponent = 8 - t->activation_width - between(12, 13);
    if (once_in(10)) t->ratio.exponent = between(-72, 47);
    /* Of 8-bit codes, or as if they were written with fewer bits. */
    t->output_ratio.mantissa = 1;
    if (t->out.bytes == 1 && once_in(3)) {
        t->output_ratio.mantissa = between(4096, 8191);
        t->output_ratio.exponent = once_in(10) ? between(-60, 40) : -between(7, 13);
    }
}

static void addition(test_case *t, int terms) {
    const int largest = below(terms), wild = once_in(8);
    for (int i = 0; i < terms; i++) {
        const int smaller = once_in(2) ? below(15) : 0, v = between(16384, 32767);
        t->sum.multiplier[i] = i == largest ? v : v >> smaller;
    }
    t->sum.shift = wild ? between(1, 30) : between(13, 17);
    t->sum.offset = 1 << (t->sum.shift - 1);
    t->sum.low = t->out.low;
    t->sum.high = t->out.high;
}

static void conv(test_case *t) {
    enum { GENERAL = 0, POINTWISE = 5, LINEAR = 8, SERIES = 10, DEPTHWISE = 12, GROUPED = 14, STYLES = 16 };
    const int style = below(STYLES);
    caq_window *w = &t->window;
    tensor *in = &t->in[0];
    int in_group = channels(), out_group = channels();
    t->groups = 1;
    in->h = size();
    in->w = size();
    if (style < POINTWISE || style >= DEPTHWISE) {
        w->kernel_h = between(1, 4);
        w->kernel_w = between(1, 5);
        if (once_in(30)) w->kernel_h = w->kernel_w = 9; /* more taps than depthwise kernels take */
    }
    if (style < LINEAR || style >= DEPTHWISE) {
        w->stride_h = once_in(2) ? between(1, 3) : 1;
        w->stride_w = once_in(2) ? between(1, 3) : 1;
    }
    if (style >= LINEAR && style < SERIES) {
        in->h = in->w = 1;
        if (once_in(4)) in_group = between(100, 1000);
    } else if (style >= SERIES && style < DEPTHWISE) {
        in->h = 1;
        in->w = between(1, 40);
        w->kernel_w = between(1, 9);
        w->stride_w = between(1, 3);
    }
    if (style != POINTWISE && !(style >= LINEAR && style < SERIES)) {
        const int same = once_in(2);
        if (style < SERIES || style >= DEPTHWISE) {
            w->dilation_h = once_in(3) ? between(1, 3) : 1;
            w->top = same ? w->kernel_h / 2 : below(4);
            w->bottom = same ? w->kernel_h / 2 : below(4);
        }
        w->dilation_w = once_in(3) ? between(1, 3) : 1;
        w->left = same ? w->kernel_w / 2 : below(4);
        w->right = same ? w->kernel_w / 2 : below(4);
    }
    if (style >= DEPTHWISE && style < GROUPED) {
        t->groups = in_group;
        in_group = 1;
        out_group = once_in(6) ? between(2, 3) : 1;
    } else if (style >= GROUPED) {
        t->groups = between(2, 8);
        in_group = once_in(2) ? between(1, 20) : in_group;
        out_group = once_in(2) ? between(1, 20) : out_group;
    }
    for (const int64_t most = work();;) {
        fit_window(t);
        if ((int64_t)t->out.h * t->out.w * t->groups * out_group * w->kernel_h * w->kernel_w * in_group <= most) break;
        switch (below(12)) {
        case 0: in_group = (in_group + 1) / 2; break;
        case 1: out_group = (out_group + 1) / 2; break;
        case 2: t->groups = (t->groups + 1) / 2; break;
        case 3: w->kernel_h = (w->kernel_h + 1) / 2; break;
        case 4: w->kernel_w = (w->kernel_w + 1) / 2; break;
        case 5: w->top = w->bottom = w->top / 2; break;
        case 6: w->left = w->right = w->left / 2; break;
        default:
            if (in->h > in->w)
                in->h = (in->h + 1) / 2;
            else
                in->w = (in->w + 1) / 2;
        }
    }
    in->c = t->groups * in_group;
    t->out.c = t->groups * out_group;
    t->weights = (int64_t)t->out.c * w->kernel_h * w->kernel_w * in_group;
    t->weight_width = once_in(4) ? 8 : between(2, 8);
    t->activation_width = once_in(2) ? 8 : between(2, 7);
    t->narrows = !once_in(4);
    const int is_signed = once_in(2);
    range(in, 1, is_signed);
    if (t->activation_width < 8 && !t->narrows) {
        in->low = is_signed ? -(1 << (t->activation_width - 1)) : 0;
        in->high = is_signed ? -in->low - 1 : (1 << t->activation_width) - 1;
    }
    output_range(t);
    halo(in, w);
    halo(&t->out, 0);
    codes(in);
    t->input_count = 1;
    t->low = t->out.low;
    t->high = t->out.high;
    weights(t);
    requantization(t);
    if (t->out.bytes == 1 && once_in(3)) {
        tensor conv_out;
        const int conv_signed = once_in(2), residual_signed = once_in(2);
        range(&conv_out, 1, conv_signed);
        t->low = conv_out.low;
        t->high = conv_out.high;
        t->input_count = 2;
        addition(t, 2);
        tensor *residual = &t->in[1];
        *residual = t->out;
        if (in->h == t->out.h && in->w == t->out.w && in->c == t->out.c && once_in(2)) {
            *residual = *in;
            t->same_residual = 1;
        } else {
            range(residual, 1, residual_signed);
            halo(residual, 0);
            codes(residual);
            if (once_in(2)) t->in_place = 1;
        }
    }
}

/* Inputs of one shape, or that differ in their channels. */
static void inputs(test_case *t, int count, int same_channels) {
    const int h = size(), w = size(), c = channels();
    t->input_count = count;
    t->out.h = h;
    t->out.w = w;
    for (int k = 0; k < count; k++) {
        tensor *x = &t->in[k];
        const int is_signed = once_in(2), other = channels();
        x->h = h;
        x->w = w;
        x->c = same_channels || k == 0 ? c : other;
        range(x, 1, is_signed);
        halo(x, 0);
        codes(x);
        t->out.c += same_channels ? (k == 0 ? c : 0) : x->c;
    }
    output_range(t);
    halo(&t->out, 0);
}

static void scales(test_case *t, int typical) {
    for (int k = 0; k < t->input_count; k++) {
        const int wild = once_in(8);
        t->scale[k].mantissa = between(1 << 22, (1 << 23) - 1);
        t->scale[k].exponent = (wild ? between(-60, -10) : typical - 23 + between(-3, 3)) + (t->out.bytes == 2 ? 8 : 0);
    }
}

static void lookup(test_case *t) {
    const int count = once_in(2) ? 1 : between(2, MOST_INPUTS);
    inputs(t, count, 0);
    scales(t, 0);
    if (count == 1 && t->out.bytes == 1 && once_in(2)) t->in_place = 0;
}

static void add(test_case *t) {
    const int count = once_in(2) ? 2 : between(2, MOST_INPUTS), target = below(count);
    inputs(t, count, 1);
    addition(t, count);
    if (t->out.bytes == 1 && once_in(2)) t->in_place = target;
}

/* Padding that leaves no window empty: shorter than the window, and its gaps no longer than the input. */
static void pool_axis(int *length, int32_t *kernel, int32_t *stride, int32_t *dilation, int32_t *before, int32_t *after) {
    *kernel = between(1, 4);
    *stride = between(1, 3);
    *dilation = once_in(3) ? between(1, 3) : 1;
    const int extent = (*kernel - 1) * *dilation + 1, most = extent < 4 ? extent : 4;
    if (once_in(2)) {
        *before = below(most);
        *after = below(most);
    }
    if (*before + *after > 0 && *dilation > *length) *length = *dilation;
}

static void pool(test_case *t) {
    caq_window *w = &t->window;
    tensor *in = &t->in[0];
    const int is_signed = once_in(2);
    t->input_count = 1;
    in->h = size();
    in->w = size();
    in->c = t->out.c = channels();
    pool_axis(&in->h, &w->kernel_h, &w->stride_h, &w->dilation_h, &w->top, &w->bottom);
    pool_axis(&in->w, &w->kernel_w, &w->stride_w, &w->dilation_w, &w->left, &w->right);
    if (once_in(6)) { /* global */
        memset(w, 0, sizeof *w);
        w->kernel_h = in->h;
        w->kernel_w = in->w;
        w->stride_h = w->stride_w = w->dilation_h = w->dilation_w = 1;
    }
    fit_window(t);
    range(in, 1, is_signed);
    halo(in, 0);
    codes(in);
    if (t->kind == CAQ_MAX_POOL)
        range(&t->out, 1, is_signed);
    else
        output_range(t);
    halo(&t->out, 0);
    scales(t, 0);
}

static void reshape(test_case *t) {
    tensor *in = &t->in[0], *out = &t->out;
    const int wide = once_in(4), is_signed = once_in(2);
    t->input_count = 1;
    in->h = size();
    in->w = size();
    in->c = channels();
    const int h = in->h, w = in->w, c = in->c;
    const int shapes[][3] = {{1, 1, h * w * c}, {1, h * w * c, 1}, {h * w * c, 1, 1}, {c, h, w}, {w, c, h},
                             {1, h * w, c},     {h * w, 1, c},     {h, 1, w * c},     {w, h, c}};
    const int shape = below(sizeof shapes / sizeof *shapes);
    range(in, wide ? 2 : 1, wide || is_signed);
    *out = *in;
    out->h = shapes[shape][0];
    out->w = shapes[shape][1];
    out->c = shapes[shape][2];
    halo(in, 0);
    halo(out, 0);
    codes(in);
}

static number float32(int wild) {
    number n = {between(-(1 << 24) + 1, (1 << 24) - 1), 0};
    n.exponent = wild ? between(-149, 103) : -24 + between(0, 16);
    return n;
}

/* Raw samples that caq_run encodes to the input's codes. */
static void encoding(test_case *t) {
    tensor *in = &t->in[0];
    const int64_t count = items(in);
    t->encoded = 1;
    t->dtype = below(3);
    const int last_axis = below(8); /* of the sample, which a reshaped input does not keep */
    t->scaling_channels = last_axis == 0 ? (int)count : last_axis == 1 ? in->w * in->c : in->c;
    in->low = -128;
    in->high = 127;
    const int n = t->scaling_channels;
    t->scaling = malloc((size_t)(3 * n) * sizeof *t->scaling);
    t->resolution = malloc((size_t)n * sizeof *t->resolution);
    t->raw = malloc((size_t)count * sizeof *t->raw);
    const int wild = once_in(4);
    for (int i = 0; i < n; i++) {
        const int shift = wild ? between(0, 30) : (t->dtype == 0 ? 15 : 22) + between(0, 1);
        const int64_t half = (int64_t)1 << shift >> 1;
        t->scaling[i] = once_in(20) ? 0 : between(16384, 32767);
        t->scaling[n + i] = (int32_t)(wild ? between(-(1 << 30) + 1, (1 << 30) - 1) : half - (t->dtype == 0 ? half * 256 : 0));
        t->scaling[2 * n + i] = shift;
        t->resolution[i] = (number){1, 0};
        if (t->dtype != 2) continue;
        t->resolution[i].mantissa = between(1, (1 << 24) - 1);
        t->resolution[i].exponent = wild ? between(-126, 103) : -17;
    }
    for (int64_t i = 0; i < count; i++) {
        t->raw[i] = float32(wild);
        if (t->dtype < 2) t->raw[i].exponent = 0;
        if (t->dtype == 0) t->raw[i].mantissa &= 0xff;
        if (t->dtype == 1) t->raw[i].mantissa = (t->raw[i].mantissa & 0xffff) - 32768;
    }
    if (t->dtype == 2 && once_in(8)) t->bad = below(2);
}

void generate(test_case *t, uint64_t seed) {
    memset(t, 0, sizeof *t);
    t->seed = seed;
    state = seed * 0xd1342543de82ef95u;
    next();
    t->in_place = t->bad = -1;
    t->window = (caq_window){1, 1, 1, 1, 1, 1, 0, 0, 0, 0};
    const int kind = below(20);
    t->kind = kind < 12 ? CAQ_CONV : kind < 14 ? CAQ_ADD : kind < 16 ? CAQ_LOOKUP : kind < 17 ? CAQ_MAX_POOL : kind < 19 ? CAQ_AVG_POOL : CAQ_RESHAPE;
    switch (t->kind) {
    case CAQ_CONV: conv(t); break;
    case CAQ_ADD: add(t); break;
    case CAQ_LOOKUP: lookup(t); break;
    case CAQ_RESHAPE: reshape(t); break;
    default: pool(t);
    }
    if (t->kind != CAQ_CONV) {
        t->low = t->out.low;
        t->high = t->out.high;
    }
    if (t->in_place >= 0) {
        const tensor *x = &t->in[t->in_place];
        t->out.top = x->top;
        t->out.bottom = x->bottom;
        t->out.left = x->left;
        t->out.right = x->right;
    }
    t->out.codes = malloc((size_t)items(&t->out) * sizeof *t->out.codes);
    t->lean = once_in(4);
    t->refill = once_in(8);
    t->last_first = once_in(2);
    t->has_table = t->out.bytes == 1 && once_in(4);
    const tensor *in = &t->in[0];
    const int reads_8_bits = t->kind != CAQ_CONV || t->activation_width == 8;
    if (t->input_count == 1 && in->bytes == 1 && in->is_signed && reads_8_bits && once_in(4)) encoding(t);
    if (t->has_table) random_bytes(next(), t->table, sizeof t->table);
}

void release(test_case *t) {
    for (int k = 0; k < t->input_count; k++)
        if (k == 0 || !t->same_residual) free(t->in[k].codes);
    free(t->out.codes);
    free(t->q);
    free(t->gain);
    free(t->bias);
    free(t->scaling);
    free(t->resolution);
    free(t->raw);
}
