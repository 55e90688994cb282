/* What every kernel must compute: caq/quant.py and caq/kernels/reference.py in plain loops over 64-bit integers. */
#include "case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t clip(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

static double value(number n) { return ldexp(n.mantissa, n.exponent); }

int naive_fixed_point(double scale, double bias, int64_t limit, int output_bits, int64_t *five) {
    if (isnan(scale) || isinf(scale) || isnan(bias) || isinf(bias)) return 1;
    if (fabs(scale) >= 0x1p14 || fabs(bias) > 0x1p24) return 1;
    int exponent;
    double mantissa = floor(frexp(fabs(scale), &exponent) * 0x1p15 + 0.5);
    int64_t total = 15 - exponent;
    if (mantissa == 0x1p15) {
        mantissa = 0x1p14;
        total--;
    }
    const int widest = output_bits == 8 ? 20 : 14;
    const int vanishing = scale == 0 || total > 31 + widest;
    const double shifted = scale == 0 ? 0 : bias / scale;
    const int late = vanishing || fabs(shifted) >= (double)(0x7fffffff - limit);
    const double early = late ? 0 : floor(shifted), remainder = late ? 0 : shifted - early;
    const int narrow = !late && (double)limit + fabs(early) < 0x1p15;

    int64_t post = narrow ? 30 : widest;
    if (!late && total < post) post = total;
    int64_t pre = total - post;
    if (vanishing) pre = 0;
    if (vanishing)
        mantissa = 0;
    else if (narrow)
        mantissa = floor(mantissa / ldexp(1, (int)pre));
    if (narrow) pre = 0;
    double multiplier = copysign(mantissa, scale);

    const double dropped = ldexp(remainder, -(int)pre) + (1 - ldexp(1, -(int)pre)) / 2;
    const double most = 0x1p30 - 0x1p20;
    double constant = late ? ldexp(bias, (int)post) : 0;
    if (fabs(constant) > most) {
        if (fabs(bias) - (double)limit * fabs(scale) < (output_bits == 8 ? 256 : 32768)) return 1;
        multiplier = 0;
    }
    if (constant > most) constant = most;
    if (constant < -most) constant = -most;
    five[0] = (int64_t)early;
    five[1] = pre;
    five[2] = (int64_t)multiplier;
    five[3] = (int64_t)((post > 0 ? ldexp(1, (int)post - 1) : 0) + floor(multiplier * dropped + constant + 0.5));
    five[4] = post;
    return 0;
}

int64_t naive_requantize(int64_t accumulator, const int64_t *five, int64_t low, int64_t high) {
    const int64_t t = clip((accumulator + five[0]) >> five[1], -32768, 32767);
    return clip((t * five[2] + five[3]) >> five[4], low, high);
}

static const int32_t *pixel(const tensor *x, int row, int column) {
    return x->codes + ((int64_t)row * x->w + column) * x->c;
}

static void encode(const test_case *t) {
    const tensor *x = &t->in[0];
    const int n = t->scaling_channels;
    for (int64_t i = 0; i < (int64_t)x->h * x->w * x->c; i++) {
        const int c = (int)(i % n);
        int64_t raw = t->raw[i].mantissa;
        if (t->dtype == 2) {
            const double scaled = floor(value(t->raw[i]) * value(t->resolution[c]) + 0.5);
            raw = scaled < -32768 ? -32768 : scaled > 32767 ? 32767 : (int64_t)scaled;
        }
        x->codes[i] = (int32_t)clip((raw * t->scaling[c] + t->scaling[n + c]) >> t->scaling[2 * n + c], -128, 127);
    }
}

static void add_up(const test_case *t, int64_t first, const int32_t *sum_of, int32_t *y) {
    int64_t total = t->sum.offset;
    for (int k = 0; k < t->input_count; k++)
        total += (int64_t)(sum_of && k == 0 ? *sum_of : t->in[k].codes[first]) * t->sum.multiplier[k];
    *y = (int32_t)clip(total >> t->sum.shift, t->sum.low, t->sum.high);
}

static int conv(test_case *t) {
    const caq_window *w = &t->window;
    const tensor *out = &t->out;
    tensor in = t->in[0];
    const int in_group = in.c / t->groups, out_group = out->c / t->groups, width = t->activation_width;
    const int64_t fan_in = (int64_t)w->kernel_h * w->kernel_w * in_group, count = (int64_t)in.h * in.w * in.c;
    const int64_t activation = in.is_signed ? 1 << (width - 1) : (1 << width) - 1;
    const int64_t multiplicand = t->weight_width == 8 ? 128 : (1 << t->weight_width) - 1;
    const double ratio = width == 8 ? 1 : value(t->ratio), output_ratio = value(t->output_ratio);
    int refused = 0;

    int64_t(*five)[5] = malloc((size_t)out->c * sizeof *five);
    for (int o = 0; o < out->c; o++)
        refused |= naive_fixed_point(ldexp(t->gain[o], t->gain_exponent) * ratio / output_ratio,
                                     ldexp(t->bias[o], t->bias_exponent) / output_ratio, fan_in * activation * multiplicand, out->bytes == 2 ? 16 : 8, five[o]);
    int64_t f[5];
    if (width < 8) refused |= naive_fixed_point(1 / ratio, 0, in.is_signed ? 128 : 255, 8, f);

    in.codes = malloc((size_t)count * sizeof *in.codes);
    memcpy(in.codes, t->in[0].codes, (size_t)count * sizeof *in.codes);
    if (t->narrows && width < 8 && !refused)
        for (int64_t i = 0; i < count; i++)
            in.codes[i] = (int32_t)naive_requantize(in.codes[i], f, in.is_signed ? -(1 << (width - 1)) : 0,
                                                    in.is_signed ? (1 << (width - 1)) - 1 : (1 << width) - 1);
    int32_t *m = malloc((size_t)t->weights * sizeof *m);
    for (int64_t i = 0; i < t->weights; i++)
        m[i] = t->weight_width == 8 ? t->q[i] : 2 * (t->q[i] >> (8 - t->weight_width)) + 1;

    for (int row = 0; row < out->h && !refused; row++)
        for (int column = 0; column < out->w; column++)
            for (int o = 0; o < out->c; o++) {
                int64_t total = 0;
                for (int i = 0; i < w->kernel_h; i++)
                    for (int j = 0; j < w->kernel_w; j++) {
                        const int y = row * w->stride_h + i * w->dilation_h - w->top;
                        const int x = column * w->stride_w + j * w->dilation_w - w->left;
                        if (y < 0 || y >= in.h || x < 0 || x >= in.w) continue;
                        const int32_t *codes = pixel(&in, y, x) + o / out_group * in_group;
                        const int32_t *taps = m + (((int64_t)o * w->kernel_h + i) * w->kernel_w + j) * in_group;
                        for (int c = 0; c < in_group; c++) total += (int64_t)codes[c] * taps[c];
                    }
                const int64_t at = ((int64_t)row * out->w + column) * out->c + o;
                int32_t code = (int32_t)naive_requantize(total, five[o], t->low, t->high);
                if (t->input_count == 2) add_up(t, at, &code, &code);
                out->codes[at] = code;
            }
    free(m);
    free(in.codes);
    free(five);
    return refused;
}

static int lookup(test_case *t) {
    int first = 0;
    for (int k = 0; k < t->input_count; first += t->in[k++].c) {
        int64_t five[5];
        if (naive_fixed_point(naive_scale(t, k), 0, naive_limit(t, k), t->out.bytes == 2 ? 16 : 8, five)) return 1;
        for (int64_t i = 0; i < (int64_t)t->out.h * t->out.w; i++)
            for (int c = 0; c < t->in[k].c; c++)
                t->out.codes[i * t->out.c + first + c] =
                    (int32_t)naive_requantize(t->in[k].codes[i * t->in[k].c + c], five, t->low, t->high);
    }
    return 0;
}

static int pool(test_case *t) {
    const caq_window *w = &t->window;
    const tensor *in = &t->in[0], *out = &t->out;
    int64_t five[5];
    if (t->kind == CAQ_AVG_POOL
        && naive_fixed_point(naive_scale(t, 0), 0, naive_limit(t, 0), out->bytes == 2 ? 16 : 8, five))
        return 1;
    for (int row = 0; row < out->h; row++)
        for (int column = 0; column < out->w; column++)
            for (int c = 0; c < out->c; c++) {
                int64_t most = INT64_MIN, total = 0;
                for (int i = 0; i < w->kernel_h; i++)
                    for (int j = 0; j < w->kernel_w; j++) {
                        const int y = row * w->stride_h + i * w->dilation_h - w->top;
                        const int x = column * w->stride_w + j * w->dilation_w - w->left;
                        if (y < 0 || y >= in->h || x < 0 || x >= in->w) continue;
                        const int64_t code = pixel(in, y, x)[c];
                        total += code;
                        most = code > most ? code : most;
                    }
                out->codes[((int64_t)row * out->w + column) * out->c + c] =
                    (int32_t)(t->kind == CAQ_MAX_POOL ? most : naive_requantize(total, five, t->low, t->high));
            }
    return 0;
}

/* To channels first, to the new shape, and back. */
static void reshape(test_case *t) {
    const tensor *in = &t->in[0], *out = &t->out;
    const int in_pixels = in->h * in->w, out_pixels = out->h * out->w;
    for (int i = 0; i < in_pixels * in->c; i++)
        out->codes[i % out_pixels * out->c + i / out_pixels] = in->codes[i % in_pixels * in->c + i / in_pixels];
}

double naive_scale(const test_case *t, int input) {
    return value(t->scale[input]) / (t->kind == CAQ_AVG_POOL ? t->window.kernel_h * t->window.kernel_w : 1);
}

int64_t naive_limit(const test_case *t, int input) {
    const int low = t->in[input].low, high = t->in[input].high;
    return (int64_t)(high > -low ? high : -low)
           * (t->kind == CAQ_AVG_POOL ? t->window.kernel_h * t->window.kernel_w : 1);
}

void naive_run(test_case *t) {
    const tensor *out = &t->out;
    const int64_t count = (int64_t)out->h * out->w * out->c;
    if (t->encoded) encode(t);
    t->refused = 0;
    switch (t->kind) {
    case CAQ_CONV: t->refused = conv(t); break;
    case CAQ_LOOKUP: t->refused = lookup(t); break;
    case CAQ_RESHAPE: reshape(t); break;
    case CAQ_ADD:
        for (int64_t i = 0; i < count; i++) add_up(t, i, 0, &out->codes[i]);
        break;
    default: t->refused = pool(t);
    }
    const int zero = out->is_signed && out->bytes == 1 ? 128 : 0;
    if (t->has_table && !t->refused)
        for (int64_t i = 0; i < count; i++) out->codes[i] = t->table[out->codes[i] + zero] - zero;
}
