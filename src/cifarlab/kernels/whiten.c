/* A convolution of few channels whose weights stay as they are, without padding, and GELU after it; and the gradient of its
 * bias, for which what GELU was given is computed again: to keep it, and a gradient of the same size, would take longer.
 */
#include "kernels.h"

#define PARTS 64 /* that sums are made of, however many threads there are: results depend on none */
#define BLOCK 8  /* pixels of outputs that are computed at once */
#define MOST_FILTERS 128

typedef struct {
    parallel_region *parallel;
    long threads, n, h, w, channels, size, filters; /* filters even, and a vector or more */
    const float *x;                                 /* (n, h, w, channels) */
    const float *weight, *bias;                     /* (size, size, channels, filters) and (filters), in whole vectors */
    element *y;                                     /* (n, h - size + 1, w - size + 1, filters): outputs, or their gradient */
    double *sums;                                   /* [PARTS][filters], of gradients */
    atomic_long taken;
} task;

INLINE long across(const task *t) { return t->w - t->size + 1; }
INLINE long outputs(const task *t) { return (t->h - t->size + 1) * across(t); } /* pixels of a picture's */

/* Of BLOCK pixels from `first` on, the last one once more where there are fewer: (BLOCK, filters) before GELU */
INLINE void compute_block(const task *t, long picture, long first, float *values) {
    const float *from[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
        uint32_t pixel = smaller(first + r, outputs(t) - 1), row = pixel / (uint32_t)across(t);
        from[r] = t->x + ((picture * t->h + row) * t->w + pixel % (uint32_t)across(t)) * t->channels;
    }
    long in_row = t->size * t->channels, wide = (t->filters + LANES - 1) / LANES * LANES;
    /* From the last vector on: what it writes past a pixel's filters is written after it. */
    for (long c = wide - LANES; c >= 0; c -= LANES) {
        vector sums[BLOCK];
        UNROLL for (int r = 0; r < BLOCK; r++) sums[r] = load(t->bias + c);
        for (long i = 0; i < t->size; i++)
            for (long j = 0; j < in_row; j++) {
                vector weight = load(t->weight + (i * in_row + j) * wide + c);
                UNROLL for (int r = 0; r < BLOCK; r++) sums[r] += from[r][i * t->w * t->channels + j] * weight;
            }
        UNROLL for (int r = 0; r < BLOCK; r++) memcpy(values + r * t->filters + c, &sums[r], sizeof sums[r]);
    }
}

static void write_outputs(void *data) {
    task *t = data;
    float values[(BLOCK + 1) * MOST_FILTERS];
    element there[BLOCK * MOST_FILTERS];
    for (long picture; (picture = atomic_fetch_add(&t->taken, 1)) < t->n;)
        for (long first = 0; first < outputs(t); first += BLOCK) {
            element *y = t->y + (picture * outputs(t) + first) * t->filters;
            long count = smaller(BLOCK, outputs(t) - first) * t->filters;
            element *to = count < BLOCK * t->filters ? there : y;
            compute_block(t, picture, first, values);
            for (long i = 0; i < BLOCK * t->filters; i += LANES) store_elements(to + i, gelu_of(load(values + i)));
            if (to == there) memcpy(y, there, count * sizeof *y);
        }
}

/* Of a picture, added to `sums` */
INLINE void sum_gradients(const task *t, long picture, double *sums) {
    float values[(BLOCK + 1) * MOST_FILTERS], of_block[BLOCK * MOST_FILTERS] = {0};
    element last[BLOCK * MOST_FILTERS] = {0};
    for (long first = 0; first < outputs(t); first += BLOCK) {
        const element *dy = t->y + (picture * outputs(t) + first) * t->filters;
        long count = smaller(BLOCK, outputs(t) - first) * t->filters;
        if (count < BLOCK * t->filters) dy = memcpy(last, dy, count * sizeof *dy); /* and zeros */
        compute_block(t, picture, first, values);
        for (long i = 0; i < BLOCK * t->filters; i += LANES) {
            vector sum = load(of_block + i) + load_elements(dy + i) * gelu_slope(load(values + i));
            memcpy(of_block + i, &sum, sizeof sum);
        }
    }
    for (long i = 0; i < BLOCK * t->filters; i++) sums[i % t->filters] += of_block[i];
}

static void sum_parts(void *data) {
    task *t = data;
    for (long part; (part = atomic_fetch_add(&t->taken, 1)) < PARTS;) {
        double *sums = t->sums + part * t->filters;
        memset(sums, 0, t->filters * sizeof *sums);
        for (long picture = t->n * part / PARTS; picture < t->n * (part + 1) / PARTS; picture++)
            sum_gradients(t, picture, sums);
    }
}

/* y from x, weight and bias */
void whiten(task *t) { t->parallel(write_outputs, t, t->threads); }

/* sums from x, weight, bias and y (which is a gradient) */
void whiten_gradient(task *t) { t->parallel(sum_parts, t, t->threads); }
