/* Loops that every instruction set's compiler turns into vectors: encoding samples, and pools. */
#include <string.h>

/* scaling.encode of items [at, at + count) of a period. Returns what is not 0 if an item is NaN or infinite. */
static uint32_t encode_part(const caq_program *p, const uint8_t *restrict x, int64_t at, int64_t count, uint8_t *restrict y) {
    const int32_t *restrict multiplier = p->scaling + at, *restrict offset = multiplier + p->scaling_period;
    const int32_t *restrict shift = offset + p->scaling_period;
    uint32_t bad = 0;
    if (p->dtype == 0) {
        for (int64_t j = 0; j < count; j++)
            y[j] = (uint8_t)(caq_clamp((x[j] * multiplier[j] + offset[j]) >> shift[j], -128, 127) + 128);
    } else if (p->dtype == 1) {
        const int16_t *items = (const int16_t *)(const void *)x;
        for (int64_t j = 0; j < count; j++)
            y[j] = (uint8_t)(caq_clamp((items[j] * multiplier[j] + offset[j]) >> shift[j], -128, 127) + 128);
    } else {
        const uint32_t *items = (const uint32_t *)(const void *)x;
        const float *restrict resolution = p->resolution + at;
        for (int64_t j = 0; j < count; j++) {
            /* What is not finite becomes 0 here, and the sample is refused. */
            const uint32_t finite = (items[j] & 0x7f800000u) != 0x7f800000u, bits = items[j] & (0u - finite);
            bad |= finite ^ 1;
            float item;
            memcpy(&item, &bits, sizeof item);
            double scaled = (double)item * (double)resolution[j] + 0.5;
            scaled = scaled < -32768.0 ? -32768.0 : scaled;
            scaled = scaled > 32767.0 ? 32767.0 : scaled;
            int32_t raw = (int32_t)scaled;
            raw -= scaled < (double)raw; /* floor */
            y[j] = (uint8_t)(caq_clamp((raw * multiplier[j] + offset[j]) >> shift[j], -128, 127) + 128);
        }
    }
    return bad;
}

/* The largest bytes of `rows` x `columns` pixels, of `n` <= CAQ_MAX_NR channels. */
static void body_max_pool(const uint8_t *x, int64_t row_step, int64_t step, int rows, int columns, int n, uint8_t *y) {
    uint8_t most[CAQ_MAX_NR] = {0};
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            const uint8_t *p = x + row * row_step + column * step;
            if (n == CAQ_MAX_NR)
                for (int i = 0; i < CAQ_MAX_NR; i++) most[i] = p[i] > most[i] ? p[i] : most[i];
            else
                for (int i = 0; i < n; i++) most[i] = p[i] > most[i] ? p[i] : most[i];
        }
    memcpy(y, most, (size_t)n);
}

/* Their sums. */
static void body_sum_pool(const uint8_t *x, int64_t row_step, int64_t step, int rows, int columns, int n, int32_t *y) {
    int32_t sums[CAQ_MAX_NR] = {0};
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            const uint8_t *p = x + row * row_step + column * step;
            if (n == CAQ_MAX_NR)
                for (int i = 0; i < CAQ_MAX_NR; i++) sums[i] += p[i];
            else
                for (int i = 0; i < n; i++) sums[i] += p[i];
        }
    memcpy(y, sums, sizeof sums);
}
