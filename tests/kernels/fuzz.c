/* Random cases of every kernel on every instruction set that runs here, against naive.c.
 *
 *     fuzz SEED COUNT [ISA]     cases SEED to SEED + COUNT - 1; a line for each instruction set, and the first difference
 *     fuzz dump SEED COUNT      the cases and what naive.c makes of them, as int64 (test_kernels.py replays them)
 */
#include "generate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Under AddressSanitizer buffers are exactly as large as was asked for, elsewhere guards lie around them. */
#if defined(__SANITIZE_ADDRESS__)
enum { GUARD = 0 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { GUARD = 0 };
#else
enum { GUARD = 64 };
#endif
#else
enum { GUARD = 64 };
#endif
enum { FILL = 0xa5, SLACK = 256, SAMPLES = 2, LAYERS = 2, SETS = 2, MOST_BUFFERS = 12 };

/* A case as a program of one step. */
typedef struct {
    caq_view views[MOST_INPUTS];
    caq_step step;
    caq_program program;
    caq_choice choices[LAYERS];
    caq_layer layers[LAYERS];
    int8_t exponents[2][SETS][LAYERS]; /* of gains and of biases */
    int16_t tables[MOST_INPUTS * 256];
    int32_t five[5];
    int64_t arena_bytes, narrowed_bytes, scratch_bytes, panel_bytes, requantize_bytes;
    int8_t *panels;
    uint8_t *requantize, *narrow, *scratch, *arena, *x;
    int16_t *y;
    struct {
        uint8_t *p;
        int64_t size;
        const char *name;
    } buffers[MOST_BUFFERS];
    int buffer_count;
} setting;

/* A team without threads: it runs the parts one after the other, every second time from the last to the first. */
static uint64_t steps_cut;

static int enter(caq_team *team) { return team->threads > 1; }

static void leave(caq_team *team) { (void)team; }

static void share(caq_team *team, int32_t parts, caq_part *part, const void *context) {
    (void)team;
    for (int32_t i = 0; i < parts; i++) part(context, steps_cut % 2 ? parts - 1 - i : i);
    steps_cut++;
}

static void *get(setting *s, int64_t size, const char *name) {
    uint8_t *p = malloc((size_t)size + 2 * GUARD);
    memset(p, FILL, (size_t)size + 2 * GUARD);
    s->buffers[s->buffer_count].p = p;
    s->buffers[s->buffer_count].size = size;
    s->buffers[s->buffer_count++].name = name;
    return p + GUARD;
}

/* Frees all buffers. Returns the name of one whose guard was written, or NULL. */
static const char *give_back(setting *s) {
    const char *wrong = 0;
    while (s->buffer_count > 0) {
        const int k = --s->buffer_count;
        uint8_t *p = s->buffers[k].p;
        for (int i = 0; i < GUARD; i++)
            if (p[i] != FILL || p[GUARD + s->buffers[k].size + i] != FILL) wrong = s->buffers[k].name;
        free(p);
    }
    return wrong;
}

static int64_t aligned(int64_t n) { return (n + 63) / 64 * 64; }

static int zero_of(const tensor *x) { return x->bytes == 1 && x->is_signed ? 128 : 0; }

static caq_view place(const tensor *x, int64_t *end) {
    caq_view v = {.h = x->h, .w = x->w, .c = x->c, .bytes = x->bytes, .zero = zero_of(x),
                  .top = x->top, .bottom = x->bottom, .left = x->left, .right = x->right};
    v.row = (x->left + x->w + x->right) * x->c * x->bytes;
    v.offset = *end + (int64_t)x->top * v.row + (int64_t)x->left * x->c * x->bytes;
    *end = aligned(*end + (int64_t)(x->top + x->h + x->bottom) * v.row);
    return v;
}

static void write_tensor(const tensor *x, const caq_view *v, uint8_t *arena) {
    memset(arena + v->offset - (int64_t)v->top * v->row - (int64_t)v->left * v->c * v->bytes, v->zero,
           (size_t)(v->top + v->h + v->bottom) * (size_t)v->row);
    const int32_t *codes = x->codes;
    for (int row = 0; row < x->h; row++) {
        uint8_t *to = arena + v->offset + (int64_t)row * v->row;
        for (int i = 0; i < x->w * x->c; i++, codes++)
            if (x->bytes == 2) {
                const int16_t code = (int16_t)*codes;
                memcpy(to + 2 * i, &code, 2);
            } else {
                to[i] = (uint8_t)(*codes + v->zero);
            }
    }
}

/* Tensors from the arena's start, the output first or last; behind them what kernels may read, and scratch. */
static void lay_out(const test_case *t, setting *s) {
    caq_step *step = &s->step;
    int64_t end = 0;
    if (!t->last_first && t->in_place < 0) step->output = place(&t->out, &end);
    for (int k = 0; k < t->input_count; k++)
        s->views[k] = k > 0 && t->same_residual ? s->views[0] : place(&t->in[k], &end);
    if (t->last_first && t->in_place < 0) step->output = place(&t->out, &end);
    if (t->in_place >= 0) {
        step->output = s->views[t->in_place];
        step->output.zero = zero_of(&t->out);
    }
    step->inputs = s->views;
    step->narrow_at = -1;
    if (t->narrows) {
        step->narrow_at = end;
        place(&t->in[0], &end);
        s->narrowed_bytes = end - step->narrow_at;
    }
    s->arena_bytes = end + SLACK + 64 * t->window.stride_w;
    s->program.scratch = aligned(s->arena_bytes);
}

/* The case's layer among others, in one of the sets. */
static void write_parameters(const test_case *t, setting *s) {
    caq_step *step = &s->step;
    caq_program *p = &s->program;
    const int layer = (int)(t->seed & 1), set = (int)(t->seed >> 1 & 1), n = t->out.c;
    step->conv = (caq_conv){t->in[0].c, n, t->groups, s->views[0].zero, t->out.bytes, t->out.h * t->out.w == 1,
                            t->window};
    step->layer = layer;
    step->first_channel = (int)(t->seed % 3);
    step->in_signed = t->in[0].is_signed;
    step->first_plane_byte = (int)(t->seed % 5);
    p->channels = step->first_channel + n + (int)(t->seed % 2);
    p->plane_bytes = step->first_plane_byte + (t->weights + 7) / 8 + (int)(t->seed % 4);
    uint8_t *planes = get(s, t->weight_width * p->plane_bytes, "planes");
    for (int b = 0; b < t->weight_width; b++) {
        uint8_t *to = planes + b * p->plane_bytes + step->first_plane_byte;
        for (int64_t i = 0; i < t->weights; i++) {
            if (i % 8 == 0) to[i / 8] = 0;
            to[i / 8] |= (uint8_t)(((uint8_t)t->q[i] >> (7 - b) & 1) << (i % 8));
        }
    }
    const int64_t row = (int64_t)set * p->channels + step->first_channel;
    int16_t *gain = get(s, (int64_t)SETS * p->channels * 2, "gain"), *bias = get(s, (int64_t)SETS * p->channels * 2, "bias");
    memcpy(gain + row, t->gain, (size_t)n * 2);
    memcpy(bias + row, t->bias, (size_t)n * 2);
    s->exponents[0][set][layer] = (int8_t)t->gain_exponent;
    s->exponents[1][set][layer] = (int8_t)t->bias_exponent;
    p->planes = planes;
    p->gain = gain;
    p->bias = bias;
    p->gain_exponent = s->exponents[0][0];
    p->bias_exponent = s->exponents[1][0];
    p->layers = LAYERS;
    s->choices[layer] = (caq_choice){t->weight_width, t->activation_width, set,
                                     t->activation_width == 8 ? 1 : ldexp(t->ratio.mantissa, t->ratio.exponent),
                                     ldexp(t->output_ratio.mantissa, t->output_ratio.exponent), t->low, t->high};
}

/* Has the layer prepared, as in an operating point's first selection or a later one. Returns what caq_prepare returns. */
static int64_t prepare(const test_case *t, setting *s, int isa) {
    caq_step *step = &s->step;
    step->panel_at = 64 * (int64_t)(t->seed % 2);
    step->requantize_at = 64 * (int64_t)(t->seed % 3);
    s->panel_bytes = step->panel_at + caq_panel_bytes(isa, &step->conv, t->weight_width);
    s->requantize_bytes = step->requantize_at + caq_requantize_bytes(isa, &step->conv);
    s->scratch_bytes = caq_scratch_bytes(isa, &s->program);
    if (t->lean) s->arena_bytes = s->program.scratch + s->scratch_bytes + SLACK;
    s->panels = get(s, s->panel_bytes, "panels");
    s->requantize = get(s, s->requantize_bytes, "requantization");
    s->narrow = get(s, 256 * LAYERS, "narrowing");
    s->scratch = get(s, s->scratch_bytes, "scratch");
    int64_t refused = 0;
    if (t->refill)
        refused = caq_prepare(isa, &s->program, s->choices, 0, s->requantize, s->narrow, 1, s->scratch, s->layers);
    if (!refused)
        refused = caq_prepare(isa, &s->program, s->choices, t->lean ? 0 : s->panels, s->requantize, s->narrow, !t->refill,
                              s->scratch, s->layers);
    return refused;
}

/* What steps without weights get from the host. */
static void fill_tables(const test_case *t, setting *s) {
    for (int k = 0; k < t->input_count; k++) {
        int64_t five[5];
        naive_fixed_point(naive_scale(t, k), 0, naive_limit(t, k), t->out.bytes == 2 ? 16 : 8, five);
        for (int i = 0; i < 5; i++) s->five[i] = (int32_t)five[i];
        for (int i = 0; i < 256; i++)
            s->tables[256 * k + i] =
                (int16_t)(naive_requantize(i - s->views[k].zero, five, t->low, t->high) + s->step.output.zero);
    }
    s->step.tables = s->tables;
    s->step.requantize = s->five;
}

/* Samples as caq_run reads them: the same one SAMPLES times, of which one may be spoiled. */
static void write_samples(const test_case *t, setting *s) {
    const tensor *in = &t->in[0];
    caq_program *p = &s->program;
    const int64_t count = (int64_t)in->h * in->w * in->c, item = t->dtype == 0 ? 1 : t->dtype == 1 ? 2 : 4;
    p->input = s->views[0];
    p->dtype = t->dtype;
    /* Short periods, and some that vectors go into. */
    p->scaling_period = (t->seed % 2 ? 64 : 1 + (int)(t->seed % 5)) * t->scaling_channels;
    p->sample_bytes = count * item;
    const int n = t->scaling_channels, repeated = p->scaling_period;
    int32_t *scaling = get(s, (int64_t)3 * 4 * repeated, "scaling");
    float *resolution = get(s, (int64_t)4 * repeated, "resolution");
    for (int i = 0; i < repeated; i++) {
        for (int k = 0; k < 3; k++) scaling[k * repeated + i] = t->scaling[k * n + i % n];
        resolution[i] = (float)ldexp(t->resolution[i % n].mantissa, t->resolution[i % n].exponent);
    }
    p->scaling = scaling;
    p->resolution = resolution;
    uint8_t *x = s->x = get(s, SAMPLES * p->sample_bytes, "samples");
    for (int k = 0; k < SAMPLES; k++)
        for (int64_t i = 0; i < count; i++, x += item) {
            const uint8_t byte = (uint8_t)t->raw[i].mantissa;
            const int16_t word = (int16_t)t->raw[i].mantissa;
            float real = (float)ldexp(t->raw[i].mantissa, t->raw[i].exponent);
            if (k == t->bad && i == count / 2) real = t->seed & 1 ? INFINITY : -NAN;
            memcpy(x, item == 1 ? (const void *)&byte : item == 2 ? (const void *)&word : (const void *)&real, (size_t)item);
        }
}

/* Runs the case through caq_run. Returns what is wrong with what that returns, or NULL. */
static const char *run_samples(const test_case *t, setting *s, int isa) {
    const tensor *out = &t->out;
    const int64_t outputs = (int64_t)out->h * out->w * out->c;
    s->y = get(s, SAMPLES * outputs * 2, "y");
    if (caq_run(isa, &s->program, s->layers, s->x, SAMPLES, s->y, s->arena) != 1 + t->bad) return "refusal of a sample";
    const int good = t->bad < 0 ? SAMPLES : t->bad;
    for (int n = 0; n < good; n++) {
        const int16_t *y = s->y + n * outputs;
        int64_t best = 0;
        for (int64_t i = 0; i < outputs; i++) {
            if (y[i] != out->codes[i]) return "outputs of caq_run";
            if (y[i] > y[best]) best = i;
        }
        if (caq_argmax(y, outputs) != best) return "caq_argmax";
    }
    return 0;
}

static uint64_t fnv(uint64_t digest, const uint8_t *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) digest = (digest ^ p[i]) * 0x100000001b3u;
    return digest;
}

/* The first byte of the arena that is not as it should be, in words, or NULL. */
static const char *compare(const setting *s, const uint8_t *expected) {
    static char words[120];
    int64_t i = 0;
    while (i < s->arena_bytes && s->arena[i] == expected[i]) i++;
    if (i == s->arena_bytes) return 0;
    const caq_view *v = &s->step.output;
    const int64_t at = i - v->offset;
    snprintf(words, sizeof words, "byte %d of row %d from the output's first pixel (arena %" PRId64 "): %d is not %d",
             (int)(at % v->row), (int)(at / v->row), i, s->arena[i], expected[i]);
    return words;
}

/* Runs the prepared case, and compares the whole arena with what it should hold. */
static const char *execute(const test_case *t, setting *s, int isa, uint64_t *digest) {
    const caq_step *step = &s->step;
    const char *wrong = 0;
    s->arena = get(s, s->arena_bytes, "arena");
    uint8_t *expected = malloc((size_t)s->arena_bytes);
    random_bytes(t->seed, s->arena, (size_t)s->arena_bytes);
    for (int k = 0; k < t->input_count; k++)
        if (!t->encoded) write_tensor(&t->in[k], &s->views[k], s->arena);
    memcpy(expected, s->arena, (size_t)s->arena_bytes);
    uint8_t *panels = malloc((size_t)s->panel_bytes + 1), *requantize = malloc((size_t)s->requantize_bytes + 1);
    if (s->panels) memcpy(panels, s->panels, (size_t)s->panel_bytes);
    if (s->requantize) memcpy(requantize, s->requantize, (size_t)s->requantize_bytes);

    if (t->encoded) {
        write_samples(t, s);
        wrong = run_samples(t, s, isa);
        write_tensor(&t->in[0], &s->views[0], expected);
    } else {
        caq_run_step(isa, &s->program, s->layers, 0, 1, s->arena);
    }
    if (t->bad < 0) { /* else encoding stopped half way */
        write_tensor(&t->out, &step->output, expected);
        if (step->narrow_at >= 0 && t->activation_width < 8)
            memcpy(expected + step->narrow_at, s->arena + step->narrow_at, (size_t)s->narrowed_bytes);
        if (t->lean && t->kind == CAQ_CONV)
            memcpy(expected + s->program.scratch, s->arena + s->program.scratch, (size_t)s->scratch_bytes);
        if (!wrong) wrong = compare(s, expected);
        for (int row = 0; row < step->output.h; row++)
            *digest = fnv(*digest, s->arena + step->output.offset + (int64_t)row * step->output.row,
                          (int64_t)step->output.w * step->output.c * step->output.bytes);
    }
    if (s->panels && memcmp(panels, s->panels, (size_t)s->panel_bytes) != 0) wrong = "panels were written";
    if (s->requantize && memcmp(requantize, s->requantize, (size_t)s->requantize_bytes) != 0)
        wrong = "requantization was written";
    free(panels);
    free(requantize);
    free(expected);
    return wrong;
}

/* Runs a case on an instruction set. Returns what is wrong, or NULL. */
static const char *check(const test_case *t, int isa, uint64_t *digest) {
    static setting s;
    memset(&s, 0, sizeof s);
    s.step.kind = t->kind;
    s.step.input_count = t->input_count;
    s.step.low = t->low;
    s.step.high = t->high;
    s.step.sum = t->sum;
    s.step.layer = -1;
    lay_out(t, &s);
    s.program.steps = &s.step;
    s.program.step_count = 1;
    s.program.output = s.step.output;
    caq_team team = {1 + (int)(t->seed % 7), 2 + (int)(t->seed % 11), 1 + (int)(t->seed % 1000), enter, leave, share};
    if (t->seed % 5) s.program.team = &team;
    const char *wrong = 0;
    if (t->kind == CAQ_CONV) {
        write_parameters(t, &s);
        if (prepare(t, &s, isa) != (t->refused ? 1 + s.step.layer : 0)) wrong = "refusal of a layer";
    } else if (!t->refused && (t->kind == CAQ_LOOKUP || t->kind == CAQ_AVG_POOL)) {
        fill_tables(t, &s);
    }
    s.step.conv.window = t->window;
    const int other = s.step.layer == 0;
    s.step.narrowed_by = t->has_table ? other : -1;
    s.layers[other].narrow = t->table;
    if (!t->refused && !wrong) wrong = execute(t, &s, isa, digest);
    const char *spoiled = give_back(&s);
    return wrong || !spoiled ? wrong : spoiled;
}

static void print_tensor(const char *name, const tensor *x) {
    printf("  %s %d x %d x %d, %d bytes, codes %d..%d, halo %d %d %d %d\n", name, x->h, x->w, x->c, x->bytes, x->low, x->high,
           x->top, x->bottom, x->left, x->right);
}

static void print_case(const test_case *t) {
    static const char *const KINDS[] = {"conv", "add", "lookup", "max_pool", "avg_pool", "reshape"};
    const caq_window *w = &t->window;
    printf("  %s\n", KINDS[t->kind]);
    for (int k = 0; k < t->input_count; k++) print_tensor("in ", &t->in[k]);
    print_tensor("out", &t->out);
    printf("  kernel %d %d, stride %d %d, dilation %d %d, padding %d %d %d %d\n", w->kernel_h, w->kernel_w, w->stride_h,
           w->stride_w, w->dilation_h, w->dilation_w, w->top, w->bottom, w->left, w->right);
    if (t->kind == CAQ_CONV)
        printf("  groups %d, weights of %d bits, activations of %d bits%s, clamped to %d..%d, gain 2^%d, bias 2^%d\n", t->groups,
               t->weight_width, t->activation_width, t->narrows ? " (place to narrow to)" : "", t->low, t->high,
               t->gain_exponent, t->bias_exponent);
    if (t->kind == CAQ_ADD || (t->kind == CAQ_CONV && t->input_count == 2))
        printf("  add * %d %d ... >> %d\n", t->sum.multiplier[0], t->sum.multiplier[1], t->sum.shift);
    printf("  in place of %d, same residual %d, table %d, lean %d, prepared twice %d, refused %d, raw samples %d (dtype %d)\n",
           t->in_place, t->same_residual, t->has_table, t->lean, t->refill, t->refused, t->encoded, t->dtype);
}

static void dump_int(int64_t v) { fwrite(&v, sizeof v, 1, stdout); }

static void dump_numbers(const number *n, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        dump_int(n[i].mantissa);
        dump_int(n[i].exponent);
    }
}

static void dump_tensor(const tensor *x) {
    const int header[] = {x->h, x->w, x->c, x->bytes, x->is_signed, x->low, x->high};
    for (size_t i = 0; i < sizeof header / sizeof *header; i++) dump_int(header[i]);
    for (int64_t i = 0; i < (int64_t)x->h * x->w * x->c; i++) dump_int(x->codes[i]);
}

/* The order is test_kernels.py's. */
static void dump(const test_case *t) {
    const caq_window *w = &t->window;
    const int header[] = {t->kind, t->low, t->high, t->refused, w->kernel_h, w->kernel_w, w->stride_h, w->stride_w,
                          w->dilation_h, w->dilation_w, w->top, w->bottom, w->left, w->right, t->has_table, t->encoded,
                          t->input_count};
    for (size_t i = 0; i < sizeof header / sizeof *header; i++) dump_int(header[i]);
    for (int k = 0; k < t->input_count; k++) dump_tensor(&t->in[k]);
    dump_tensor(&t->out);
    for (int i = 0; i < 256 && t->has_table; i++) dump_int(t->table[i]);
    if (t->encoded) {
        const int n = t->scaling_channels;
        dump_int(t->dtype);
        dump_int(n);
        for (int i = 0; i < 3 * n; i++) dump_int(t->scaling[i]);
        dump_numbers(t->resolution, n);
        dump_numbers(t->raw, (int64_t)t->in[0].h * t->in[0].w * t->in[0].c);
    }
    if (t->kind == CAQ_CONV) {
        const int layer[] = {t->groups, t->weight_width, t->activation_width, t->narrows, t->gain_exponent, t->bias_exponent};
        for (size_t i = 0; i < sizeof layer / sizeof *layer; i++) dump_int(layer[i]);
        dump_numbers(&t->ratio, 1);
        dump_numbers(&t->output_ratio, 1);
        for (int i = 0; i < t->out.c; i++) dump_int(t->gain[i]);
        for (int i = 0; i < t->out.c; i++) dump_int(t->bias[i]);
        for (int64_t i = 0; i < t->weights; i++) dump_int(t->q[i]);
    }
    for (int i = 0; i < MOST_INPUTS; i++) dump_int(t->sum.multiplier[i]);
    const int sum[] = {t->sum.offset, t->sum.shift, t->sum.low, t->sum.high};
    for (size_t i = 0; i < sizeof sum / sizeof *sum; i++) dump_int(sum[i]);
    dump_numbers(t->scale, t->input_count);
}

int main(int argc, char **argv) {
    enum { MOST_ISAS = 16 };
    const int dumps = argc == 4 && strcmp(argv[1], "dump") == 0;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "fuzz SEED COUNT [ISA] | fuzz dump SEED COUNT\n");
        return 2;
    }
    const uint64_t seed = strtoull(argv[1 + dumps], 0, 10), count = strtoull(argv[2 + dumps], 0, 10);
    const char *wanted = argc == 4 && !dumps ? argv[3] : 0;
    uint64_t digests[MOST_ISAS], refused = 0;
    int runs[MOST_ISAS], any = dumps;
    for (int isa = 0; isa < caq_isa_count(); isa++) {
        digests[isa] = 0xcbf29ce484222325u;
        runs[isa] = caq_isa_runs(isa) == 1 && (!wanted || strcmp(wanted, caq_isa_name(isa)) == 0);
        any |= runs[isa];
    }
    if (!any) {
        fprintf(stderr, "%s does not run here\n", wanted);
        return 2;
    }
    for (uint64_t i = 0; i < count; i++) {
        test_case t;
        generate(&t, seed + i);
        naive_run(&t);
        refused += (uint64_t)t.refused;
        if (dumps) dump(&t);
        for (int isa = 0; isa < caq_isa_count() && !dumps; isa++) {
            const char *wrong = runs[isa] ? check(&t, isa, &digests[isa]) : 0;
            if (wrong) {
                printf("%s, case %" PRIu64 ": %s\n", caq_isa_name(isa), t.seed, wrong);
                print_case(&t);
                return 1;
            }
        }
        release(&t);
    }
    for (int isa = 0; isa < caq_isa_count() && !dumps; isa++)
        if (runs[isa])
            printf("%s %" PRIu64 " cases, 0 differences, %" PRIu64 " refused, digest %016" PRIx64 "\n", caq_isa_name(isa), count,
                   refused, digests[isa]);
    if (!dumps) printf("%" PRIu64 " steps were cut\n", steps_cut);
    return 0;
}
