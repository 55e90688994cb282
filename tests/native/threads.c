/* Three threads infer while a fourth switches plans, to be built with -fsanitize=thread.
 *
 *     threads ISA INFERENCES TEAM
 *
 * Each inference may be shared by TEAM threads, if no other one has them; 1 for none.
 * A program of two steps, a convolution that adds a residual and an add, over a tensor that both read. Operating points have
 * tables of their own; of each, several plans with panels are made while others infer, as after a trim. Every output is compared
 * with what its plan gave before there were any threads. Prints a line; exits with 1 if an output was wrong. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "caq.h"

enum { SIZE = 9, CHANNELS = 16, LAYERS = 1, POINTS = 6, INFERRING = 3, SETS = 1, KERNEL = 3 };
enum { PERIOD = 256 }; /* of the scaling, which repeats */
enum { ITEMS = SIZE * SIZE * CHANNELS, WEIGHTS = CHANNELS * KERNEL * KERNEL * CHANNELS, SAMPLES = 4 };

typedef struct {
    caq_layer layers[LAYERS];
    int8_t *panels;
    int point;
} plan;

static int isa;
static caq_program program;
static int64_t arena_bytes, panel_bytes, requantize_bytes;
static caq_choice choices[POINTS][LAYERS];
static uint8_t *requantize[POINTS], *narrow[POINTS];
static uint8_t x[SAMPLES][ITEMS];
static int16_t expected[POINTS][SAMPLES][ITEMS];
static _Atomic(plan *) active;
static atomic_llong begun, shared, wrong;
static int (*enter)(caq_team *team);
static atomic_int working;

static uint32_t state = 1;

static uint32_t next_random(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void *room(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64 + 64);
    if (!memory) exit(2);
    return memory;
}

/* A tensor with a halo of one pixel at `offset`; moves `offset` behind it. */
static caq_view tensor(int64_t *offset) {
    caq_view v = {.h = SIZE, .w = SIZE, .c = CHANNELS, .bytes = 1, .zero = 128, .top = 1, .bottom = 1, .left = 1, .right = 1};
    v.row = (SIZE + 2) * CHANNELS;
    v.offset = *offset + v.row + CHANNELS;
    *offset += ((SIZE + 2) * v.row + 63) / 64 * 64;
    return v;
}

static void make_program(void) {
    static caq_step steps[2];
    static caq_view conv_inputs[2], add_inputs[2];
    static int16_t gain[CHANNELS], bias[CHANNELS];
    static int8_t gain_exponent[LAYERS] = {-24}, bias_exponent[LAYERS] = {-10};
    static int32_t scaling[3 * PERIOD];
    static float resolution[PERIOD];
    static uint8_t planes[8][WEIGHTS / 8];
    int64_t offset = 0;
    const caq_view input = tensor(&offset), middle = tensor(&offset), output = tensor(&offset);
    const int64_t narrowed = offset;
    tensor(&offset);
    arena_bytes = offset + 256 + 64;
    const caq_conv conv = {CHANNELS, CHANNELS, 1, 128, 1, 0, {KERNEL, KERNEL, 1, 1, 1, 1, 1, 1, 1, 1}};
    const caq_sum sum = {.multiplier = {12000, 9000}, .offset = 1 << 13, .shift = 14, .low = -128, .high = 127};
    conv_inputs[0] = conv_inputs[1] = input;
    add_inputs[0] = input;
    add_inputs[1] = middle;
    steps[0] = (caq_step){.kind = CAQ_CONV, .input_count = 2, .inputs = conv_inputs, .output = middle, .conv = conv,
                          .in_signed = 1, .narrowed_by = -1, .narrow_at = narrowed, .low = -128, .high = 127, .sum = sum};
    steps[1] = (caq_step){.kind = CAQ_ADD, .input_count = 2, .inputs = add_inputs, .output = output, .layer = -1,
                          .narrowed_by = -1, .narrow_at = -1, .sum = sum};
    for (int i = 0; i < CHANNELS; i++) {
        gain[i] = (int16_t)(16384 + next_random() % 16000);
        bias[i] = (int16_t)(next_random() % 65535 - 32767);
    }
    for (int i = 0; i < PERIOD; i++) {
        scaling[i] = 1 << 14;
        scaling[PERIOD + i] = -128 * (1 << 14);
        scaling[2 * PERIOD + i] = 14;
        resolution[i] = 1;
    }
    for (int b = 0; b < 8; b++)
        for (int i = 0; i < WEIGHTS / 8; i++) planes[b][i] = (uint8_t)next_random();
    program = (caq_program){.steps = steps, .step_count = 2, .input = input, .output = output, .dtype = 0,
                            .scaling_period = PERIOD, .scaling = scaling, .resolution = resolution, .sample_bytes = ITEMS,
                            .gain = gain, .bias = bias, .gain_exponent = gain_exponent, .bias_exponent = bias_exponent,
                            .channels = CHANNELS, .layers = LAYERS, .planes = planes[0], .plane_bytes = WEIGHTS / 8};
    panel_bytes = caq_panel_bytes(isa, &conv, 8);
    requantize_bytes = caq_requantize_bytes(isa, &conv);
}

static plan *make_plan(int point, int fill, uint8_t *scratch) {
    plan *p = malloc(sizeof *p);
    if (!p) exit(2);
    p->point = point;
    p->panels = room(panel_bytes);
    if (caq_prepare(isa, &program, choices[point], p->panels, requantize[point], narrow[point], fill, scratch, p->layers)) exit(2);
    return p;
}

static int counted_enter(caq_team *team) {
    const int entered = enter(team);
    atomic_fetch_add(&shared, entered);
    return entered;
}

/* Threads that take parts of whatever size. */
static caq_team *make_team(int threads) {
    caq_team *team = room(caq_team_bytes(threads));
    if (caq_team_start(team, threads)) exit(2);
    team->grain = 1;
    enter = team->enter;
    team->enter = counted_enter;
    return team;
}

static void *infer(void *argument) {
    const long long inferences = *(const long long *)argument;
    uint8_t *arena = room(arena_bytes);
    int16_t y[ITEMS];
    for (long long i; (i = atomic_fetch_add(&begun, 1)) < inferences;) {
        const plan *p = atomic_load_explicit(&active, memory_order_acquire);
        caq_run(isa, &program, p->layers, x[i % SAMPLES], 1, y, arena);
        if (memcmp(y, expected[p->point][i % SAMPLES], sizeof y)) atomic_fetch_add(&wrong, 1);
    }
    atomic_fetch_sub(&working, 1);
    free(arena);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    long long inferences = atoll(argv[2]);
    const int team = atoi(argv[3]);
    for (isa = 0; isa < caq_isa_count() && strcmp(caq_isa_name(isa), argv[1]);) isa++;
    if (isa == caq_isa_count() || caq_isa_runs(isa) != 1) return 2;
    make_program();
    uint8_t *scratch = room(caq_scratch_bytes(isa, &program)), *arena = room(arena_bytes);
    for (int i = 0; i < SAMPLES; i++)
        for (int k = 0; k < ITEMS; k++) x[i][k] = (uint8_t)next_random();
    plan *resident[POINTS];
    int different = 0;
    for (int p = 0; p < POINTS; p++) {
        static const int weight[POINTS] = {2, 3, 4, 5, 6, 8}, activation[POINTS] = {8, 4, 2, 5, 3, 8};
        choices[p][0] = (caq_choice){weight[p], activation[p], 0, activation[p] == 8 ? 1.0 : 4.0, 1.0, -128, 127};
        requantize[p] = room(requantize_bytes);
        narrow[p] = room(256);
        resident[p] = make_plan(p, 1, scratch);
        for (int i = 0; i < SAMPLES; i++) caq_run(isa, &program, resident[p]->layers, x[i], 1, expected[p][i], arena);
        different += p > 0 && memcmp(expected[p], expected[p - 1], sizeof expected[p]) != 0;
    }
    if (different != POINTS - 1) return 2; /* else no test of switching */
    if (team > 1) program.team = make_team(team);
    atomic_store(&active, resident[0]);
    atomic_store(&working, INFERRING);
    pthread_t threads[INFERRING];
    for (int t = 0; t < INFERRING; t++)
        if (pthread_create(&threads[t], 0, infer, &inferences)) return 2;
    /* A plan that was replaced may still run, so plans made on the way are freed at the end. */
    enum { MOST_MADE = 2000 };
    static plan *made[MOST_MADE];
    int count = 0;
    long long switches = 0;
    for (; atomic_load(&working); switches++) {
        const int point = (int)(next_random() % POINTS);
        plan *p = resident[point];
        if (count < MOST_MADE && switches % 8 == 0) p = made[count++] = make_plan(point, 0, scratch);
        atomic_store_explicit(&active, p, memory_order_release);
    }
    for (int t = 0; t < INFERRING; t++) pthread_join(threads[t], 0);
    if (program.team) caq_team_stop(program.team);
    free(program.team);
    for (int i = 0; i < count; i++) {
        free(made[i]->panels);
        free(made[i]);
    }
    for (int p = 0; p < POINTS; p++) {
        free(resident[p]->panels);
        free(resident[p]);
        free(requantize[p]);
        free(narrow[p]);
    }
    free(scratch);
    free(arena);
    printf("%s: %lld inferences, %lld shared, %lld switches, %lld wrong\n", argv[1], inferences, (long long)shared,
           switches, (long long)wrong);
    return wrong != 0;
}
