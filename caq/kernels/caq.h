/* The native kernels: integer inference over nested weights, the same answer bit for bit on every CPU.
 *
 * Nothing here allocates, prints, or keeps state: every buffer is the caller's, and every function may run in any
 * number of threads at once. The definition of right is caq/kernels/reference.py; caq/quant.py has the arithmetic. Only
 * threads.c, which may be left out, starts threads and waits for them.
 *
 * Codes in memory
 *     An activation is one byte, `code + zero`: zero is 0 for unsigned tensors and 128 for signed ones, so that every
 *     tensor is unsigned. A tensor lies in the arena as rows of pixels of channels, with a *halo* of `zero` bytes around
 *     it as wide as the padding that the layers that read it want: no kernel tests for edges, no padding is copied.
 *     What is left of `zero * sum(weights)` in an accumulator is taken off in the bias.
 *
 * Panels
 *     Weights as the kernels eat them: for each block of output channels, for each *run* (a stretch of input bytes that
 *     lie together: a kernel row, or one tap of a grouped or dilated kernel), for each quad of 4 input bytes, the
 *     4 weights of every channel of the block. Runs and blocks are filled up with zeros.
 *
 * This header is also what cffi reads (build_ffi.py), so it holds plain declarations only.
 */
#ifndef CAQ_H
#define CAQ_H

#include <stddef.h>
#include <stdint.h>

/* A tensor in the arena. `offset` is that of its first pixel, within the halo; a pixel has `c` items of `bytes` bytes
 * (2 for 16-bit outputs, signed and without a zero). */
typedef struct {
    int64_t offset;
    int32_t row; /* bytes from one row to the next, halo included */
    int32_t h, w, c;
    int32_t bytes;
    int32_t zero;
    int32_t top, bottom, left, right; /* the halo */
} caq_view;

typedef struct {
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int32_t top, bottom, left, right; /* padding */
} caq_window;

typedef struct {
    int32_t in_channels, out_channels, groups;
    int32_t in_zero;
    int32_t out_bytes;
    int32_t one_pixel; /* whether it computes a single pixel: a matrix times a vector */
    caq_window window;
} caq_conv;

/* y = clamp((sum of (x_i - zero_i) * multiplier_i + offset) >> shift, low, high) */
typedef struct {
    int32_t multiplier[8];
    int32_t offset, shift, low, high;
} caq_sum;

enum { CAQ_CONV, CAQ_ADD, CAQ_LOOKUP, CAQ_MAX_POOL, CAQ_AVG_POOL, CAQ_RESHAPE };

typedef void caq_part(const void *context, int32_t index);

/* Threads that share the large steps of an inference. threads.c makes one of POSIX threads; it may be made of others,
 * as the kernels know no more of it than this. */
typedef struct caq_team {
    int32_t threads; /* that take parts, the caller's among them */
    int32_t parts;   /* the most that a step is cut into */
    int64_t grain;   /* multiply-accumulates that are worth a part of their own */
    /* 1: the caller's until it calls `leave`; 0: another inference has it, or its threads are gone. Never waits. */
    int (*enter)(struct caq_team *team);
    void (*leave)(struct caq_team *team);
    /* For who has entered. Calls `part` once for each index below `parts`, no more than those above, on any thread and
     * in any order; returns when all are done. */
    void (*share)(struct caq_team *team, int32_t parts, caq_part *part, const void *context);
} caq_team;

/* One step of a program: all that does not depend on an operating point. */
typedef struct {
    int32_t kind;
    int32_t input_count;
    const caq_view *inputs; /* conv: its input, and what is added to its output, if anything */
    caq_view output;
    caq_conv conv;       /* its window also serves the pools */
    int32_t layer;       /* conv: index of the layer; else -1 */
    int32_t first_channel; /* conv: its first among those of all layers */
    int32_t in_signed;     /* conv: whether it reads signed codes */
    int64_t first_plane_byte; /* conv: where its codes begin in each bit plane */
    int64_t panel_at, requantize_at; /* conv: where its panel and its requantization begin in their buffers */
    int32_t narrowed_by; /* layer whose narrowing is applied to the output as it is written, or -1 */
    int64_t narrow_at;   /* conv: where in the arena its input is narrowed to, in the input's layout; or -1 */
    int32_t low, high;
    caq_sum sum;           /* add, and conv that adds */
    const int16_t *tables; /* lookup: 256 items an input */
    const int32_t *requantize; /* avg_pool: bias, pre_shift, multiplier, offset, post_shift */
} caq_step;

typedef struct {
    const caq_step *steps;
    int32_t step_count;
    caq_view input, output;
    int32_t dtype; /* of samples: 0 uint8, 1 int16, 2 float32 */
    int32_t scaling_period; /* a multiple of the channels that samples are scaled by */
    /* Per channel, over and over for `scaling_period` items: (3, period) multiplier, offset, shift; (period,). */
    const int32_t *scaling;
    const float *resolution;
    int64_t sample_bytes;
    int64_t scratch; /* where in the arena weights are unpacked to when there are no panels */
    /* Parameters (caq.plan): rows of all layers' channels, and exponents of all layers, a row a set. */
    const int16_t *gain, *bias;
    const int8_t *gain_exponent, *bias_exponent;
    int32_t channels, layers;
    const uint8_t *planes; /* (widths read, plane_bytes) */
    int64_t plane_bytes;
    caq_team *team; /* or NULL for one thread */
} caq_program;

/* What an operating point chooses for one layer. */
typedef struct {
    int32_t weight_width, activation_width;
    int32_t set;  /* row of the parameters */
    double ratio;        /* step of the layer's input at its activation width over that at 8 bits */
    double output_ratio; /* the same of what it writes: plan.written, as are */
    int32_t low, high;
} caq_choice;

/* What an inference needs of one layer. */
typedef struct {
    const int8_t *panel; /* NULL: unpacked into scratch at every inference, which saves the memory */
    const void *requantize;
    const uint8_t *narrow; /* 256 codes, or NULL where the layer reads 8 bits */
    int32_t weight_width;
    int32_t low, high; /* of what it writes, before a residual is added */
} caq_layer;

/* A conditional gate (caq.conditional): what picks the layers of the steps from `step` on. */
typedef struct {
    int32_t step;
    int32_t branches;
    caq_view input; /* of 8-bit codes */
    int32_t shift;
    const int8_t *weights; /* (branches, channels) */
    const int32_t *bias;
    const uint8_t *const *planes; /* of each branch, where layers have no panels; NULL: all have the program's */
} caq_gate;

/* Instruction sets: 0 portable, 1 avx2, 2 avx512vnni, 3 neon, 4 neon with dot product. */
int caq_isa_count(void);
const char *caq_isa_name(int isa);
int caq_isa_runs(int isa); /* 1 if compiled in and this CPU has it, 0 if not compiled in, -1 if the CPU lacks it */

/* Bytes of a layer's panel of weights of `width` bits (the most at 8), of its prepared requantization, and of its
 * multiplicands. */
int64_t caq_panel_bytes(int isa, const caq_conv *conv, int width);
int64_t caq_requantize_bytes(int isa, const caq_conv *conv);
int64_t caq_unpack_bytes(const caq_conv *conv);

/* Multiplicands (out_channels, kernel_h, kernel_w, in_channels / groups) from `width` bit planes; `m` has room for
 * caq_unpack_bytes. */
void caq_unpack(int isa, const caq_conv *conv, const uint8_t *planes, int64_t plane_stride, int width, int8_t *m);

/* Lays multiplicands of weights of `width` bits out as a panel. */
void caq_panel(int isa, const caq_conv *conv, int width, const int8_t *m, int8_t *panel);

/* quant.fixed_point for `count` channels: gain and bias are mantissas of 2**exponent, gain is multiplied with `ratio`, and both
 * are divided by `output_ratio`.
 * `out` is (5, count): bias, pre_shift, multiplier, offset, post_shift. Returns 0, or 1 + the channel that is refused. */
int64_t caq_fixed_point(const int16_t *gain, int gain_exponent, const int16_t *bias, int bias_exponent, double ratio,
                        double output_ratio, int64_t accumulator_limit, int output_bits, int64_t count, int32_t *out);

/* The five rows of caq_fixed_point as the kernels of `isa` read them; sums: of each channel's multiplicands. */
void caq_requantize_prepare(int isa, const caq_conv *conv, const int32_t *five, const int32_t *sums, void *out);

/* Prepares an operating point. panels, or NULL where scratch is to serve; requantize: a buffer, filled if `fill` is not 0 and
 * else as an earlier call left it; narrow: (layers, 256). scratch: caq_scratch_bytes. Writes `layers`. Returns 0, or
 * 1 + the layer whose parameters are refused. */
int64_t caq_prepare(int isa, const caq_program *program, const caq_choice *choices, int8_t *panels, uint8_t *requantize,
                    uint8_t *narrow, int fill, uint8_t *scratch, caq_layer *layers);
int64_t caq_scratch_bytes(int isa, const caq_program *program);

/* Runs `count` samples. Returns 0, or 1 + the index of the first sample that holds NaN or infinity; then `y` is unfinished.
 * x: (count, sample) of the program's dtype. y: (count, outputs). */
int64_t caq_run(int isa, const caq_program *program, const caq_layer *layers, const void *x, int64_t count, int16_t *y,
                uint8_t *arena);

/* The same at a conditional operating point. layers: those of each branch, one after the other; the first one's also serve
 * the steps before the gate. taken: NULL, or room for the branch of each sample. */
int64_t caq_run_gated(int isa, const caq_program *program, const caq_layer *layers, const caq_gate *gate, int32_t *taken,
                      const void *x, int64_t count, int16_t *y, uint8_t *arena);

/* The branch that the sample in the arena takes; its tensor has just been written. */
int32_t caq_choose(int isa, const caq_gate *gate, const uint8_t *arena);

/* Runs one step of a sample that is already in the arena, `repeat` times: what a profiler times. */
void caq_run_step(int isa, const caq_program *program, const caq_layer *layers, int32_t step, int64_t repeat,
                  uint8_t *arena);

/* Only the unpacking of a step's weights into the arena of a program without panels; nothing, of a step that has none. */
void caq_unpack_step(int isa, const caq_program *program, const caq_layer *layers, int32_t step, int64_t repeat,
                     uint8_t *arena);

/* Starts `threads` - 1 workers, which wait in `team`: caq_team_bytes of memory that begins at a cache line and stays
 * until caq_team_stop has returned. caq_team_bytes is 0 where there are no threads. Returns 0, or the errno of what
 * failed; then none is left. */
int64_t caq_team_bytes(int32_t threads);
int caq_team_start(caq_team *team, int32_t threads);
/* Ends the workers, while no inference has them. In a child that was forked off there are none: nothing is done. */
void caq_team_stop(caq_team *team);

/* reference.softmax of `count` outputs; factor: reference.softmax_factor. */
void caq_softmax(const int16_t *y, int64_t count, int64_t factor, uint16_t *p);

/* Index of the largest of `count` outputs; the first of equals. */
int64_t caq_argmax(const int16_t *y, int64_t count);

#endif
