/* Batch normalisation in training (Ioffe and Szegedy, ICML 2015) of float32 (N, H, W, C), C a multiple of LANES, and its
 * gradients. 2x2 max-pooling may follow at once: the largest of four is all that is written then, with a byte that says
 * which of them it was (0 to 3), and the gradient comes in that form. H and W are even with it.
 */
#include "kernels.h"
#include <math.h>

#define PARTS 64          /* that sums are made of, however many threads there are: results depend on none */
#define PIXELS 256        /* summed in float32 before they are added to a sum in float64 */
#define MOST_CHANNELS 2048

typedef struct {
    parallel_region *parallel;
    long threads, n, h, w, channels, pooled;
    const float *x, *weight, *bias;
    float *y;        /* the outputs, or their gradient */
    uint8_t *marks;  /* of pooled y */
    float *dx;       /* the gradients of x, weight and bias */
    float *dweight, *dbias;
    float *mean, *variance; /* of each channel, the variance without Bessel's correction */
    double *sums;           /* [PARTS][2][channels] */
    float epsilon;
    phase first_phase, second_phase;
} task;

/* y = a x + b of each channel, or dx = a dy + b x + c */
typedef struct {
    float a[MOST_CHANNELS], b[MOST_CHANNELS], c[MOST_CHANNELS];
} factors;

INLINE long all_pixels(const task *t) { return t->n * t->h * t->w; }
INLINE long all_squares(const task *t) { return all_pixels(t) / 4; }

/* ---- squares of pooled pictures ---- */

/* The first value of number `square` in x */
INLINE long place_of(const task *t, long square) {
    uint32_t across = t->w / 2, row = (uint32_t)square / across;
    return (2 * row * t->w + 2 * ((uint32_t)square % across)) * t->channels;
}

INLINE long next_in_square(const task *t, int i) { return (i / 2 * t->w + i % 2) * t->channels; }

/* ---- sums of a part: of d and d^2, where d is x less a mean of few pixels, or of dy and dy (x - mean). Without what is
 * subtracted, values far from 0 would lose what is to be known of them. `wide` vectors of channels. ---- */

INLINE void sum_values(const task *t, int gradient, vector subtracted, long i, long c, vector *one, vector *two) {
    long at = i * t->channels + c;
    vector x, dy;
    if (gradient && t->pooled) {
        const float *square = t->x + place_of(t, i) + c;
        dy = load(t->y + at), x = load(square);
        UNROLL for (int k = 1; k < 4; k++) x = chosen(mark_is(t->marks + at, k), load(square + next_in_square(t, k)), x);
    } else {
        x = load(t->x + at);
        dy = gradient ? load(t->y + at) : x - subtracted;
    }
    *one += dy, *two += dy * (x - subtracted);
}

INLINE void sum_channels(const task *t, int gradient, int wide, long first, long last, long c, double *sums) {
    double total[2][2 * LANES] = {0};
    vector subtracted[2];
    for (int k = 0; k < wide; k++) subtracted[k] = load(t->mean + c + k * LANES);
    for (long begin = first; begin < last; begin += PIXELS) {
        vector one[2] = {0}, two[2] = {0};
        for (long i = begin; i < smaller(begin + PIXELS, last); i++)
            UNROLL for (int k = 0; k < wide; k++)
                sum_values(t, gradient, subtracted[k], i, c + k * LANES, &one[k], &two[k]);
        for (int i = 0; i < wide * LANES; i++) {
            total[0][i] += one[i / LANES][i % LANES];
            total[1][i] += two[i / LANES][i % LANES];
        }
    }
    memcpy(sums + c, total[0], wide * LANES * sizeof *sums);
    memcpy(sums + t->channels + c, total[1], wide * LANES * sizeof *sums);
}

INLINE void sum_part(const task *t, int gradient, long part) {
    long all = gradient && t->pooled ? all_squares(t) : all_pixels(t);
    long first = all * part / PARTS, last = all * (part + 1) / PARTS, c = 0;
    double *sums = t->sums + part * 2 * t->channels;
    for (; c + PANEL <= t->channels; c += PANEL) sum_channels(t, gradient, 2, first, last, c, sums);
    if (c < t->channels) sum_channels(t, gradient, 1, first, last, c, sums);
}

INLINE double total_of(const task *t, int which, long c) {
    double total = 0.0;
    for (long part = 0; part < PARTS; part++) total += t->sums[(2 * part + which) * t->channels + c];
    return total;
}

/* ---- forward ---- */

static void statistics_of(const task *t, long c, double *mean, double *variance) {
    double difference = total_of(t, 0, c) / all_pixels(t);
    double found = total_of(t, 1, c) / all_pixels(t) - difference * difference;
    *mean = t->mean[c] + difference;
    *variance = found < 0.0 ? 0.0 : found; /* NaN stays */
}

static void forward_factors(const task *t, factors *f) {
    for (long c = 0; c < t->channels; c++) {
        double mean, variance;
        statistics_of(t, c, &mean, &variance);
        double a = t->weight[c] / sqrt(variance + t->epsilon);
        f->a[c] = a, f->b[c] = t->bias[c] - a * mean;
    }
}

INLINE vector scaled(const factors *f, long c, vector x) { return load(f->a + c) * x + load(f->b + c); }

INLINE void normalise_pixel(const task *t, const factors *f, long pixel) {
    for (long c = 0; c < t->channels; c += LANES) {
        vector y = scaled(f, c, load(t->x + pixel * t->channels + c));
        memcpy(t->y + pixel * t->channels + c, &y, sizeof y);
    }
}

INLINE void normalise_square(const task *t, const factors *f, long square) {
    const float *x = t->x + place_of(t, square);
    for (long c = 0; c < t->channels; c += LANES) {
        vector y[4];
        bits which;
        UNROLL for (int i = 0; i < 4; i++) y[i] = scaled(f, c, load(x + next_in_square(t, i) + c));
        vector largest = largest_of_four(y, &which);
        bytes marks = __builtin_convertvector(which, bytes);
        memcpy(t->y + square * t->channels + c, &largest, sizeof largest);
        memcpy(t->marks + square * t->channels + c, &marks, sizeof marks);
    }
}

static void forward_as_thread(void *data) {
    task *t = data;
    factors f;
    for (long part; (part = take(&t->first_phase)) < PARTS; done(&t->first_phase)) sum_part(t, 0, part);
    wait_for(&t->first_phase, PARTS);
    forward_factors(t, &f);
    long all = t->pooled ? all_squares(t) : all_pixels(t);
    for (long part; (part = take(&t->second_phase)) < PARTS;)
        for (long i = all * part / PARTS; i < all * (part + 1) / PARTS; i++)
            if (t->pooled)
                normalise_square(t, &f, i);
            else
                normalise_pixel(t, &f, i);
}

/* ---- backward ---- */

INLINE double inverse_deviation(const task *t, long c) { return 1.0 / sqrt((double)t->variance[c] + t->epsilon); }

/* The sum of dy times the normalised x */
INLINE double total_with_normalised(const task *t, long c) {
    return total_of(t, 1, c) * inverse_deviation(t, c);
}

static void backward_factors(const task *t, factors *f) {
    for (long c = 0; c < t->channels; c++) {
        double inverse = inverse_deviation(t, c), a = t->weight[c] * inverse;
        double b = -a * inverse * total_with_normalised(t, c) / all_pixels(t);
        f->a[c] = a, f->b[c] = b, f->c[c] = -a * total_of(t, 0, c) / all_pixels(t) - b * t->mean[c];
    }
}

INLINE void write_gradient(const task *t, const factors *f, long at, long c, vector dy) {
    vector dx = load(f->a + c) * dy + (load(f->b + c) * load(t->x + at) + load(f->c + c));
    memcpy(t->dx + at, &dx, sizeof dx);
}

INLINE void gradient_of_pixel(const task *t, const factors *f, long pixel) {
    for (long c = 0; c < t->channels; c += LANES) {
        long at = pixel * t->channels + c;
        write_gradient(t, f, at, c, load(t->y + at));
    }
}

INLINE void gradient_of_square(const task *t, const factors *f, long square) {
    for (long c = 0; c < t->channels; c += LANES) {
        long at = square * t->channels + c;
        vector dy = load(t->y + at);
        UNROLL for (int i = 0; i < 4; i++) {
            vector there = (vector)((bits)dy & mark_is(t->marks + at, i));
            write_gradient(t, f, place_of(t, square) + next_in_square(t, i) + c, c, there);
        }
    }
}

static void backward_as_thread(void *data) {
    task *t = data;
    factors f;
    for (long part; (part = take(&t->first_phase)) < PARTS; done(&t->first_phase)) sum_part(t, 1, part);
    wait_for(&t->first_phase, PARTS);
    backward_factors(t, &f);
    long all = t->pooled ? all_squares(t) : all_pixels(t);
    for (long part; (part = take(&t->second_phase)) < PARTS;)
        for (long i = all * part / PARTS; i < all * (part + 1) / PARTS; i++)
            if (t->pooled)
                gradient_of_square(t, &f, i);
            else
                gradient_of_pixel(t, &f, i);
}

/* ---- what is called ---- */

/* Of the first pixel of each part: one alone may be far from the others */
static void mean_of_few(task *t) {
    memset(t->mean, 0, t->channels * sizeof *t->mean);
    for (long part = 0; part < PARTS; part++) {
        const float *pixel = t->x + all_pixels(t) * part / PARTS * t->channels;
        for (long c = 0; c < t->channels; c++) t->mean[c] += pixel[c] / PARTS;
    }
}

/* y, mean and variance from x, weight and bias */
void normalise(task *t) {
    mean_of_few(t);
    t->parallel(forward_as_thread, t, t->threads, 0);
    for (long c = 0; c < t->channels; c++) {
        double mean, variance;
        statistics_of(t, c, &mean, &variance);
        t->mean[c] = mean, t->variance[c] = variance;
    }
}

/* dx, dweight and dbias from x, weight, y (which is a gradient), mean and variance */
void normalise_gradient(task *t) {
    t->parallel(backward_as_thread, t, t->threads, 0);
    for (long c = 0; c < t->channels; c++) t->dweight[c] = total_with_normalised(t, c), t->dbias[c] = total_of(t, 0, c);
}
