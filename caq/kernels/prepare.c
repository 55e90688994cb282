/* From what a file holds to what the kernels eat: bit planes to panels, gains and biases to fixed point. */
#include "isa.h"

#include <math.h>
#include <string.h>

static const caq_isa *const ISAS[] = {
    &caq_portable,
#if defined(__x86_64__)
    &caq_avx2,
    &caq_avx512vnni,
#else
    0,
    0,
#endif
#if defined(__ARM_NEON)
    &caq_neon,
#else
    0,
#endif
#if defined(__aarch64__)
    &caq_neon_dot,
#else
    0,
#endif
};
static const char *const NAMES[] = {"portable", "avx2", "avx512vnni", "neon", "neon_dot"};

const caq_isa *caq_isa_table(int isa) { return ISAS[isa]; }

int caq_isa_count(void) { return (int)(sizeof NAMES / sizeof *NAMES); }

const char *caq_isa_name(int isa) { return NAMES[isa]; }

int caq_isa_runs(int isa) { return !ISAS[isa] ? 0 : ISAS[isa]->runs() ? 1 : -1; }

int64_t caq_panel_bytes(int isa, const caq_conv *c, int width) { return ISAS[isa]->panel_bytes(c, width); }

int64_t caq_requantize_bytes(int isa, const caq_conv *c) { return ISAS[isa]->requantize_bytes(c); }

static int64_t weights(const caq_conv *c) { return c->out_channels * caq_fan_in(c); }

/* Unpacking writes whole vectors of 64. */
int64_t caq_unpack_bytes(const caq_conv *c) { return (weights(c) + 127) / 64 * 64; }

void caq_unpack(int isa, const caq_conv *c, const uint8_t *planes, int64_t plane_stride, int width, int8_t *m) {
    ISAS[isa]->unpack(planes, plane_stride, width, weights(c), m);
}

void caq_panel(int isa, const caq_conv *c, int width, const int8_t *m, int8_t *panel) {
    ISAS[isa]->panel(c, width, m, panel);
}

void caq_requantize_prepare(int isa, const caq_conv *c, const int32_t *five, const int32_t *sums, void *out) {
    ISAS[isa]->requantize(c, five, sums, c->in_zero - ISAS[isa]->x_zero, out);
}

/* One channel of quant.fixed_point, step by step the same; its comments say why. Returns 0, or 1 if it is refused. */
static int fixed_point(double scale, double bias, int64_t limit, int output_bits, int32_t *out, int64_t stride) {
    if (!isfinite(scale) || !isfinite(bias) || fabs(scale) >= 16384.0 || fabs(bias) > 16777216.0) return 1;
    int exponent;
    double mantissa = floor(ldexp(frexp(fabs(scale), &exponent), 15) + 0.5);
    int total = 15 - exponent;
    if (mantissa == 32768.0) {
        mantissa = 16384.0;
        total -= 1;
    }
    const int widest = output_bits == 8 ? 20 : 14;
    const int vanishing = scale == 0 || total > 31 + widest;
    const double shifted = scale == 0 ? 0.0 : bias / scale;
    const int late = vanishing || fabs(shifted) >= 2147483647.0 - (double)limit;
    const double early = late ? 0.0 : floor(shifted), remainder = late ? 0.0 : shifted - early;
    const int narrow = !late && (double)limit + fabs(early) < 32768.0;
    int post = widest;
    if (!late) {
        const int most = narrow ? 30 : widest;
        post = total < most ? total : most;
    }
    int pre = vanishing ? 0 : total - post;
    if (vanishing)
        mantissa = 0.0;
    else if (narrow)
        mantissa = floor(mantissa / ldexp(1.0, pre));
    if (narrow) pre = 0;
    double multiplier = copysign(mantissa, scale);
    const double dropped = ldexp(remainder, -pre) + (1.0 - ldexp(1.0, -pre)) / 2;
    const double most = 1073741824.0 - 1048576.0;
    double constant = late ? ldexp(bias, post) : 0.0;
    if (fabs(constant) > most) {
        if (fabs(bias) - (double)limit * fabs(scale) < (output_bits == 8 ? 256.0 : 32768.0)) return 1;
        multiplier = 0.0;
        constant = constant < 0 ? -most : most;
    }
    const double half = post > 0 ? ldexp(1.0, post - 1) : 0.0;
    out[0] = (int32_t)early;
    out[stride] = pre;
    out[2 * stride] = (int32_t)multiplier;
    out[3 * stride] = (int32_t)(half + floor(multiplier * dropped + constant + 0.5));
    out[4 * stride] = post;
    return 0;
}

int64_t caq_fixed_point(const int16_t *gain, int gain_exponent, const int16_t *bias, int bias_exponent, double ratio,
                        double output_ratio, int64_t accumulator_limit, int output_bits, int64_t count, int32_t *out) {
    for (int64_t i = 0; i < count; i++) {
        const double scale = ldexp(gain[i], gain_exponent) * ratio / output_ratio;
        if (fixed_point(scale, ldexp(bias[i], bias_exponent) / output_ratio, accumulator_limit, output_bits, out + i, count)) return 1 + i;
    }
    return 0;
}

/* quant.accumulator_limit and quant.multiplicand_limit. */
static int64_t accumulator_limit(const caq_step *s, const caq_choice *choice) {
    const int64_t activation = s->in_signed ? 1 << (choice->activation_width - 1) : (1 << choice->activation_width) - 1;
    const int64_t multiplicand = choice->weight_width == 8 ? 128 : (1 << choice->weight_width) - 1;
    return caq_fan_in(&s->conv) * activation * multiplicand;
}

/* plan.narrowing as a table of bytes as the arena holds them. Returns 1 if the ratio is refused. */
static int narrowing(const caq_step *s, const caq_choice *choice, uint8_t *table) {
    const int zero = s->in_signed ? 128 : 0, width = choice->activation_width;
    const int32_t low = s->in_signed ? -(1 << (width - 1)) : 0, high = s->in_signed ? -low - 1 : (1 << width) - 1;
    int32_t f[5];
    if (fixed_point(1.0 / choice->ratio, 0.0, s->in_signed ? 128 : 255, 8, f, 1)) return 1;
    for (int i = 0; i < 256; i++)
        table[i] = (uint8_t)(caq_clamp(caq_requantize(i - zero, f[0], f[1], f[2], f[3], f[4]), low, high) + zero);
    return 0;
}

/* Scratch: multiplicands of a part, then 5 rows of fixed point and the sums, or at an inference the part's panel. */
static int64_t scratch_bytes(int isa, const caq_conv *c) {
    const caq_conv part = caq_slice(c, 0);
    const int64_t fixed = 6 * (int64_t)sizeof(int32_t) * c->out_channels, panel = caq_panel_bytes(isa, &part, 8);
    return caq_unpack_bytes(&part) + (fixed > panel ? fixed : panel);
}

int64_t caq_scratch_bytes(int isa, const caq_program *p) {
    int64_t most = 0;
    for (int i = 0; i < p->step_count; i++)
        if (p->steps[i].kind == CAQ_CONV) {
            const int64_t bytes = scratch_bytes(isa, &p->steps[i].conv);
            most = bytes > most ? bytes : most;
        }
    return most;
}

int64_t caq_prepare(int isa, const caq_program *p, const caq_choice *choices, int8_t *panels, uint8_t *requantize,
                    uint8_t *narrow, int fill, uint8_t *scratch, caq_layer *layers) {
    for (int i = 0; i < p->step_count; i++) {
        const caq_step *s = &p->steps[i];
        if (s->kind != CAQ_CONV) continue;
        const caq_conv *c = &s->conv;
        const caq_choice *choice = &choices[s->layer];
        caq_layer *layer = &layers[s->layer];
        layer->panel = panels ? panels + s->panel_at : 0;
        layer->requantize = requantize + s->requantize_at;
        layer->narrow = choice->activation_width < 8 ? narrow + 256 * s->layer : 0;
        layer->weight_width = choice->weight_width;
        layer->low = choice->low;
        layer->high = choice->high;
        const int n = c->out_channels;
        caq_conv part = caq_slice(c, 0);
        int8_t *m = (int8_t *)scratch, *panel = panels ? panels + s->panel_at : 0;
        int32_t *five = (int32_t *)(void *)(scratch + caq_unpack_bytes(&part)), *sums = five + 5 * n;
        const int sum = fill && c->in_zero != ISAS[isa]->x_zero; /* else sums of weights do not matter */
        const int64_t fan_in = caq_fan_in(c), row = (int64_t)choice->set * p->channels + s->first_channel;
        const int64_t at = (int64_t)choice->set * p->layers + s->layer;
        if (fill) memset(sums, 0, (size_t)n * sizeof *sums);
        for (int begin = 0; (panels || sum) && begin < n; begin += part.out_channels) {
            part = caq_slice(c, begin);
            caq_unpack(isa, &part, p->planes + s->first_plane_byte + begin * fan_in / 8, p->plane_bytes, choice->weight_width, m);
            if (panels) {
                caq_panel(isa, &part, choice->weight_width, m, panel);
                panel += caq_panel_bytes(isa, &part, choice->weight_width);
            }
            for (int k = 0; sum && k < part.out_channels; k++)
                for (int64_t j = 0; j < fan_in; j++) sums[begin + k] += m[k * fan_in + j];
        }
        if (!fill) continue;
        if (caq_fixed_point(p->gain + row, p->gain_exponent[at], p->bias + row, p->bias_exponent[at], choice->ratio,
                            choice->output_ratio, accumulator_limit(s, choice), c->out_bytes == 2 ? 16 : 8, n, five))
            return 1 + s->layer;
        caq_requantize_prepare(isa, c, five, sums, requantize + s->requantize_at);
        if (layer->narrow && narrowing(s, choice, narrow + 256 * s->layer)) return 1 + s->layer;
    }
    return 0;
}
