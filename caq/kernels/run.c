/* Runs a program: every step's kernels, over a sample in the arena.
 *
 * Large steps are cut into parts for the threads of a team. One part writes an output, from what no other part writes,
 * so the answer is the same however a step is cut. Kernels read up to a vector beyond a tensor, where another part may
 * be writing; such bytes meet weights of zero, or lanes that are not stored.
 */
#include "isa.h"

#include <string.h>

const caq_isa *caq_isa_table(int isa);

CAQ_INLINE uint8_t *at(const caq_view *v, uint8_t *arena, int32_t row, int32_t column) {
    return arena + v->offset + (int64_t)row * v->row + (int64_t)column * v->c * v->bytes;
}

/* Output channels that one panel is of: all, or those of a group. */
CAQ_INLINE int32_t channels_of(const caq_conv *c) { return c->groups == 1 ? c->out_channels : c->out_channels / c->groups; }

/* Fills the halo with zeros: the rows above and below, and what lies between one row's end and the next one's start. */
static void fill_halo(const caq_view *v, uint8_t *arena) {
    const size_t left = (size_t)v->left * v->c, right = (size_t)v->right * v->c, gap = left + right;
    if (v->top) memset(at(v, arena, -v->top, 0) - left, v->zero, (size_t)v->top * v->row);
    if (gap) {
        const uint64_t eight = (uint64_t)v->zero * 0x0101010101010101u;
        uint8_t *first = at(v, arena, 0, 0) - left;
        memset(first, v->zero, left);
        for (int row = 0; row < v->h; row++) {
            /* The last row's gap ends with the row. */
            uint8_t *p = first + (int64_t)(row + 1) * v->row - right;
            const size_t bytes = row + 1 < v->h ? gap : right;
            size_t i = 0;
            for (; i + 8 <= bytes; i += 8) memcpy(p + i, &eight, 8);
            for (; i < bytes; i++) p[i] = (uint8_t)v->zero;
        }
    }
    if (v->bottom) memset(at(v, arena, v->h, 0) - left, v->zero, (size_t)v->bottom * v->row);
}

/* Encodes a sample at the start of its tensor's memory, halo included, and moves the rows from there to their places: the last
 * one first, so that none is overwritten before it has moved. Returns 0, or 1 on NaN and infinity. */
static int encode(const caq_isa *isa, const caq_program *p, const uint8_t *x, uint8_t *arena) {
    const caq_view *v = &p->input;
    const int64_t items = (int64_t)v->w * v->c;
    uint8_t *codes = at(v, arena, -v->top, -v->left);
    const int bad = isa->encode(p, x, codes, v->h * items);
    if (at(v, arena, 0, 0) != codes || v->row != items)
        for (int row = v->h - 1; row >= 0; row--) memmove(at(v, arena, row, 0), codes + row * items, (size_t)items);
    return bad;
}

/* The panel of a part of a layer that has none, in the arena's scratch; `begin` is the part's first channel. */
CAQ_INLINE const int8_t *unpack_panel(int id, const caq_program *p, const caq_step *s, const caq_conv *part, int32_t begin,
                                      int32_t width, uint8_t *arena) {
    int8_t *m = (int8_t *)(arena + p->scratch), *panel = m + caq_unpack_bytes(part);
    caq_unpack(id, part, p->planes + s->first_plane_byte + begin * caq_fan_in(part) / 8, p->plane_bytes, width, m);
    caq_panel(id, part, width, m, panel);
    return panel;
}

/* A step, and how its output is cut along one axis. */
typedef struct work {
    const caq_isa *isa;
    const caq_step *step;
    const caq_layer *layers;
    uint8_t *arena;
    const caq_conv_task *task; /* of a convolution, */
    int32_t begin, end;        /* and the channels of each group that its panel is of */
    void (*run)(const struct work *w, int64_t first, int64_t last);
    int64_t size, unit; /* along the axis; all parts but the last are multiples of `unit` */
    int32_t parts;
} work;

/* What each input byte of an output costs, in multiply-accumulates of a convolution without groups. */
enum { DEPTHWISE_COST = 4, PLAIN_COST = 8 };

static int64_t units_of(const work *w) { return (w->size + w->unit - 1) / w->unit; }

static void run_part(const void *context, int32_t index) {
    const work *w = context;
    const int64_t units = units_of(w), last = units * (index + 1) / w->parts * w->unit;
    w->run(w, units * index / w->parts * w->unit, last < w->size ? last : w->size);
}

/* cost: of each output, in multiply-accumulates. */
static void run_parts(caq_team *team, work *w, int64_t cost) {
    if (team) {
        const caq_view *out = &w->step->output;
        const int64_t units = units_of(w), worth = (int64_t)out->h * out->w * out->c * cost / team->grain;
        const int64_t parts = worth < units ? worth : units;
        w->parts = parts < team->parts ? (int32_t)parts : team->parts;
        if (w->parts > 1) {
            team->share(team, w->parts, run_part, w);
            return;
        }
    }
    w->run(w, 0, w->size);
}

static void depthwise_rows(const work *w, int64_t first, int64_t last) {
    w->isa->depthwise(w->task, (int32_t)first, (int32_t)last);
}

static void conv_pixels(const work *w, int64_t first, int64_t last) {
    w->isa->conv(w->task, first, last, w->begin, w->end);
}

static void conv_channels(const work *w, int64_t first, int64_t last) {
    const caq_view *out = &w->step->output;
    w->isa->conv(w->task, 0, (int64_t)out->h * out->w, w->begin + (int32_t)first, w->begin + (int32_t)last);
}

/* Items of the largest of `threads` shares. */
CAQ_INLINE int64_t largest_share(int64_t size, int64_t unit, int64_t threads) {
    const int64_t share = ((size + unit - 1) / unit + threads - 1) / threads * unit;
    return share < size ? share : size;
}

/* By rows if depthwise. Else by pixels or by channels, whichever gives more equal shares; of about equal ones, so that
 * of weights and inputs what is larger is read once, and not by every thread. */
static void cut_conv(const caq_team *team, work *w, const caq_view *in) {
    enum { TILE = 12 }; /* pixels; of most kernels a multiple of theirs */
    const caq_conv *c = w->task->conv;
    const int64_t pixels = (int64_t)w->step->output.h * w->step->output.w, channels = w->end - w->begin;
    if (caq_is_depthwise(c)) {
        w->run = depthwise_rows;
        w->size = w->step->output.h;
        w->unit = 1;
        return;
    }
    w->run = conv_pixels;
    w->size = pixels;
    w->unit = TILE;
    if (team && c->groups == 1) {
        const int64_t by_pixels = largest_share(pixels, TILE, team->threads) * channels;
        const int64_t by_channels = largest_share(channels, w->isa->nr_max, team->threads) * pixels;
        const int64_t weights = channels * c->window.kernel_h * c->window.kernel_w * c->in_channels;
        if (8 * by_channels < (weights > (int64_t)in->h * in->row ? 9 : 7) * by_pixels) {
            w->run = conv_channels;
            w->size = channels;
            w->unit = w->isa->nr_max;
        }
    }
}

/* A convolution without a panel, or for a team. */
static void run_conv_in_parts(const caq_isa *isa, int id, const caq_program *p, const caq_step *s, const caq_layer *layer,
                              uint8_t *arena, caq_team *team, caq_conv_task *t, const caq_view *in) {
    const caq_conv *c = &s->conv;
    const int32_t channels = channels_of(c);
    work w = {.isa = isa, .step = s, .task = t, .end = channels};
    const int64_t cost = caq_fan_in(c) * (caq_is_depthwise(c) ? DEPTHWISE_COST : 1);
    if (layer->panel) {
        cut_conv(team, &w, in);
        run_parts(team, &w, cost);
        return;
    }
    for (; w.begin < channels; w.begin = w.end) {
        const caq_conv part = caq_slice(c, w.begin);
        w.end = c->groups == 1 ? w.begin + part.out_channels : channels;
        t->begin = w.begin;
        t->panel = unpack_panel(id, p, s, &part, w.begin, layer->weight_width, arena);
        cut_conv(team, &w, in);
        run_parts(team, &w, cost);
    }
}

static void run_conv(const caq_isa *isa, int id, const caq_program *p, const caq_step *s, const caq_layer *layers,
                     uint8_t *arena, caq_team *team) {
    const caq_layer *layer = &layers[s->layer];
    const caq_conv *c = &s->conv;
    caq_view narrowed;
    const caq_view *in = &s->inputs[0], *out = &s->output, *other = in + 1;
    if (layer->narrow && s->narrow_at >= 0) {
        narrowed = *in;
        narrowed.offset = s->narrow_at + (int64_t)in->top * in->row + (int64_t)in->left * in->c;
        for (int row = -in->top; row < in->h + in->bottom; row++)
            isa->lookup(at(in, arena, row, -in->left), layer->narrow, at(&narrowed, arena, row, -in->left), in->row);
        in = &narrowed;
    }
    fill_halo(out, arena);
    /* Field by field: what an initializer leaves out is zeroed by an instruction that takes as long as a small layer. */
    caq_conv_task t;
    t.conv = c;
    t.x = at(in, arena, -c->window.top, -c->window.left);
    t.x_row = in->row;
    t.y = at(out, arena, 0, 0);
    t.y_row = out->row;
    t.y_w = out->w;
    t.panel = layer->panel;
    t.begin = 0;
    t.weight_width = layer->weight_width;
    t.requantize = layer->requantize;
    t.low = layer->low;
    t.high = layer->high;
    t.zero = s->low < 0 && c->out_bytes == 1 ? 128 : 0;
    t.narrow = s->narrowed_by >= 0 ? layers[s->narrowed_by].narrow : 0;
    t.sum = s->input_count == 2 ? &s->sum : 0;
    if (t.sum) {
        t.residual = at(other, arena, 0, 0);
        t.residual_row = other->row;
        t.residual_zero = other->zero;
        t.sum_zero = out->zero;
    }
    if (team || !layer->panel)
        run_conv_in_parts(isa, id, p, s, layer, arena, team, &t, in);
    else if (caq_is_depthwise(c))
        isa->depthwise(&t, 0, out->h);
    else
        isa->conv(&t, 0, (int64_t)out->h * out->w, 0, channels_of(c));
}

CAQ_INLINE void narrow_row(const work *w, uint8_t *y, int64_t n) {
    const uint8_t *narrow = w->step->narrowed_by >= 0 ? w->layers[w->step->narrowed_by].narrow : 0;
    if (narrow) w->isa->lookup(y, narrow, y, n);
}

static void add_rows(const work *work, int64_t first, int64_t last) {
    const caq_isa *isa = work->isa;
    const caq_step *s = work->step;
    const caq_view *out = &s->output;
    uint8_t *arena = work->arena;
    const int64_t n = (int64_t)out->w * out->c;
    for (int row = (int)first; row < last; row++) {
        uint8_t *y = at(out, arena, row, 0);
        if (s->input_count == 2 && out->bytes == 1) {
            isa->add(&s->sum, at(&s->inputs[0], arena, row, 0), s->inputs[0].zero, at(&s->inputs[1], arena, row, 0),
                     s->inputs[1].zero, y, out->zero, n);
        } else {
            for (int64_t i = 0; i < n; i++) {
                int32_t sum = s->sum.offset;
                for (int k = 0; k < s->input_count; k++)
                    sum += (at(&s->inputs[k], arena, row, 0)[i] - s->inputs[k].zero) * s->sum.multiplier[k];
                sum = caq_clamp(sum >> s->sum.shift, s->sum.low, s->sum.high);
                if (out->bytes == 2)
                    ((int16_t *)(void *)y)[i] = (int16_t)sum;
                else
                    y[i] = (uint8_t)(sum + out->zero);
            }
        }
        narrow_row(work, y, n);
    }
}

/* A table an input; several inputs lie side by side in the output's channels. */
static void lookup_rows(const work *work, int64_t first, int64_t last) {
    const caq_step *s = work->step;
    const caq_view *out = &s->output;
    uint8_t *arena = work->arena;
    for (int row = (int)first; row < last; row++) {
        for (int column = 0; column < out->w; column++) {
            uint8_t *y = at(out, arena, row, column);
            for (int k = 0; k < s->input_count; k++) {
                const uint8_t *x = at(&s->inputs[k], arena, row, column);
                const int16_t *table = s->tables + 256 * k;
                for (int i = 0; i < s->inputs[k].c; i++, y += out->bytes)
                    if (out->bytes == 2)
                        *(int16_t *)(void *)y = table[x[i]];
                    else
                        *y = (uint8_t)table[x[i]];
            }
        }
        narrow_row(work, at(out, arena, row, 0), (int64_t)out->w * out->c);
    }
}

/* The part of a window along one axis that lies within `size`. */
CAQ_INLINE void within(int32_t start, int32_t kernel, int32_t dilation, int32_t size, int32_t *first, int32_t *last) {
    *first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *last = kernel;
    while (*last > *first && start + (*last - 1) * dilation >= size) --*last;
}

static void pool_rows(const work *work, int64_t first_row, int64_t last_row) {
    const caq_isa *isa = work->isa;
    const caq_step *s = work->step;
    uint8_t *arena = work->arena;
    const caq_view *in = &s->inputs[0], *out = &s->output;
    const caq_window *w = &s->conv.window;
    for (int row = (int)first_row; row < last_row; row++) {
        int32_t ky0, ky1;
        within(row * w->stride_h - w->top, w->kernel_h, w->dilation_h, in->h, &ky0, &ky1);
        for (int column = 0; column < out->w; column++) {
            int32_t kx0, kx1;
            within(column * w->stride_w - w->left, w->kernel_w, w->dilation_w, in->w, &kx0, &kx1);
            uint8_t *y = at(out, arena, row, column);
            const uint8_t *first = at(in, arena, row * w->stride_h - w->top + ky0 * w->dilation_h,
                                      column * w->stride_w - w->left + kx0 * w->dilation_w);
            for (int n = 0; n < out->c; n += CAQ_MAX_NR) {
                const int count = out->c - n < CAQ_MAX_NR ? out->c - n : CAQ_MAX_NR;
                const int64_t row_step = (int64_t)w->dilation_h * in->row, step = (int64_t)w->dilation_w * in->c;
                if (s->kind == CAQ_MAX_POOL) {
                    isa->max_pool(first + n, row_step, step, ky1 - ky0, kx1 - kx0, count, y + n);
                    continue;
                }
                int32_t sums[CAQ_MAX_NR];
                isa->sum_pool(first + n, row_step, step, ky1 - ky0, kx1 - kx0, count, sums);
                const int32_t *q = s->requantize, taken = in->zero * (ky1 - ky0) * (kx1 - kx0);
                for (int i = 0; i < count; i++) {
                    const int32_t v =
                        caq_clamp(caq_requantize(sums[i] - taken, q[0], q[1], q[2], q[3], q[4]), s->low, s->high);
                    if (out->bytes == 2)
                        ((int16_t *)(void *)y)[n + i] = (int16_t)v;
                    else
                        y[n + i] = (uint8_t)(v + out->zero);
                }
            }
        }
        narrow_row(work, at(out, arena, row, 0), (int64_t)out->w * out->c);
    }
}

/* In channels-first order: item (c, row, column) of the input is the i-th, and so is item (c', row', column'). */
static void reshape(const work *work) {
    const caq_view *in = &work->step->inputs[0], *out = &work->step->output;
    uint8_t *arena = work->arena;
    int row = 0, column = 0, channel = 0;
    for (int c = 0; c < in->c; c++)
        for (int y = 0; y < in->h; y++)
            for (int x = 0; x < in->w; x++) {
                memcpy(at(out, arena, row, column) + (int64_t)channel * out->bytes,
                       at(in, arena, y, x) + (int64_t)c * in->bytes, (size_t)in->bytes);
                if (++column == out->w) {
                    column = 0;
                    if (++row == out->h) {
                        row = 0;
                        channel++;
                    }
                }
            }
    for (int r = 0; r < out->h; r++) narrow_row(work, at(out, arena, r, 0), (int64_t)out->w * out->c);
}

static void run_step(const caq_isa *isa, int id, const caq_program *p, const caq_layer *layers, const caq_step *s,
                     uint8_t *arena, caq_team *team) {
    if (s->kind == CAQ_CONV) {
        run_conv(isa, id, p, s, layers, arena, team);
        return;
    }
    work w = {.isa = isa, .step = s, .layers = layers, .arena = arena, .size = s->output.h, .unit = 1};
    int64_t cost = PLAIN_COST * s->input_count;
    fill_halo(&s->output, arena);
    switch (s->kind) {
    case CAQ_RESHAPE: reshape(&w); return;
    case CAQ_ADD: w.run = add_rows; break;
    case CAQ_LOOKUP: w.run = lookup_rows; break;
    default:
        w.run = pool_rows;
        cost *= (int64_t)s->conv.window.kernel_h * s->conv.window.kernel_w;
    }
    run_parts(team, &w, cost);
}

/* The program's team, if it is free. */
CAQ_INLINE caq_team *entered(const caq_program *p) { return p->team && p->team->enter(p->team) ? p->team : 0; }

CAQ_INLINE void leave(caq_team *team) {
    if (team) team->leave(team);
}

/* Sums of channels [begin, begin + count) of a tensor's bytes; `count` is CAQ_MAX_NR or what is left. Where pixels fill whole
 * vectors of CAQ_MAX_NR together, they are summed as one pixel of so many channels first. */
static void channel_sums(const caq_isa *isa, const caq_view *v, const uint8_t *arena, int32_t begin, int32_t count,
                         int32_t *sums) {
    const int32_t group = CAQ_MAX_NR % v->c ? 1 : CAQ_MAX_NR / v->c, whole = v->w / group, rest = v->w - whole * group;
    const uint8_t *first = arena + v->offset + begin;
    int32_t part[CAQ_MAX_NR];
    isa->sum_pool(first, v->row, (int64_t)group * v->c, v->h, whole, group * count, sums);
    for (int k = 1; k < group; k++)
        for (int i = 0; i < count; i++) sums[i] += sums[k * count + i];
    if (!rest) return;
    isa->sum_pool(first + (int64_t)whole * group * v->c, v->row, v->c, v->h, rest, count, part);
    for (int i = 0; i < count; i++) sums[i] += part[i];
}

int32_t caq_choose(int id, const caq_gate *g, const uint8_t *arena) {
    enum { MOST = 16 }; /* caq.conditional.MAX_BRANCHES */
    const caq_view *v = &g->input;
    const int32_t taken = v->zero * v->h * v->w;
    int32_t scores[MOST], sums[CAQ_MAX_NR], best = 0;
    for (int b = 0; b < g->branches; b++) scores[b] = g->bias[b];
    for (int begin = 0; begin < v->c; begin += CAQ_MAX_NR) {
        const int count = v->c - begin < CAQ_MAX_NR ? v->c - begin : CAQ_MAX_NR;
        channel_sums(caq_isa_table(id), v, arena, begin, count, sums);
        for (int i = 0; i < count; i++) sums[i] = (sums[i] - taken) >> g->shift;
        for (int b = 0; b < g->branches; b++)
            for (int i = 0; i < count; i++) scores[b] += g->weights[(int64_t)b * v->c + begin + i] * sums[i];
    }
    for (int b = 1; b < g->branches; b++)
        if (scores[b] > scores[best]) best = b;
    return best;
}

/* gate, taken: NULL where there is one branch. */
static int64_t run_samples(const caq_isa *isa, int id, const caq_program *p, const caq_layer *layers, const caq_gate *gate,
                           int32_t *taken, const uint8_t *x, int64_t count, int16_t *y, uint8_t *arena, caq_team *team) {
    const caq_view *out = &p->output;
    const int64_t items = (int64_t)out->w * out->c;
    for (int64_t n = 0; n < count; n++) {
        const caq_layer *chosen = layers;
        const caq_program *rest = p;
        caq_program own;
        int i = 0;
        if (encode(isa, p, x + n * p->sample_bytes, arena)) return 1 + n;
        fill_halo(&p->input, arena);
        if (gate) {
            for (; i < gate->step; i++) run_step(isa, id, p, layers, &p->steps[i], arena, team);
            const int32_t branch = caq_choose(id, gate, arena);
            chosen += (int64_t)branch * p->layers;
            if (gate->planes) {
                own = *p;
                own.planes = gate->planes[branch];
                rest = &own;
            }
            if (taken) taken[n] = branch;
        }
        for (; i < p->step_count; i++) run_step(isa, id, rest, chosen, &p->steps[i], arena, team);
        for (int row = 0; row < out->h; row++, y += items) {
            const uint8_t *codes = at(out, arena, row, 0);
            if (out->bytes == 2)
                memcpy(y, codes, (size_t)items * 2);
            else
                for (int64_t k = 0; k < items; k++) y[k] = (int16_t)(codes[k] - out->zero);
        }
    }
    return 0;
}

int64_t caq_run(int id, const caq_program *p, const caq_layer *layers, const void *x, int64_t count, int16_t *y,
                uint8_t *arena) {
    caq_team *team = entered(p);
    const int64_t refused = run_samples(caq_isa_table(id), id, p, layers, 0, 0, x, count, y, arena, team);
    leave(team);
    return refused;
}

int64_t caq_run_gated(int id, const caq_program *p, const caq_layer *layers, const caq_gate *gate, int32_t *taken,
                      const void *x, int64_t count, int16_t *y, uint8_t *arena) {
    caq_team *team = entered(p);
    const int64_t refused = run_samples(caq_isa_table(id), id, p, layers, gate, taken, x, count, y, arena, team);
    leave(team);
    return refused;
}

void caq_run_step(int id, const caq_program *p, const caq_layer *layers, int32_t step, int64_t repeat, uint8_t *arena) {
    caq_team *team = entered(p);
    while (repeat-- > 0) run_step(caq_isa_table(id), id, p, layers, &p->steps[step], arena, team);
    leave(team);
}

void caq_unpack_step(int id, const caq_program *p, const caq_layer *layers, int32_t step, int64_t repeat, uint8_t *arena) {
    const caq_step *s = &p->steps[step];
    if (s->kind != CAQ_CONV) return;
    while (repeat-- > 0)
        for (int32_t begin = 0; begin < s->conv.out_channels;) {
            const caq_conv part = caq_slice(&s->conv, begin);
            unpack_panel(id, p, s, &part, begin, layers[s->layer].weight_width, arena);
            begin += part.out_channels;
        }
}

/* 2**-(exponent * 2**-16) in units of 2**-30. */
static int64_t power_of_half(int64_t exponent) {
    const int64_t whole = exponent >> 16, f = exponent & 0xffff;
    if (whole >= 31) return 0;
    const int64_t c = -42490630, b = 248266870 + ((c * f) >> 16), a = -742647152 + ((b * f) >> 16);
    return (((int64_t)1 << 30) + ((a * f) >> 16)) >> whole;
}

void caq_softmax(const int16_t *y, int64_t count, int64_t factor, uint16_t *p) {
    const int64_t most = y[caq_argmax(y, count)];
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += power_of_half((most - y[i]) * factor >> 16);
    for (int64_t i = 0; i < count; i++)
        p[i] = (uint16_t)((power_of_half((most - y[i]) * factor >> 16) * 65535 + total / 2) / total);
}

int64_t caq_argmax(const int16_t *y, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (y[i] > y[best]) best = i;
    return best;
}
