/* Batch normalisation in training (Ioffe and Szegedy, ICML 2015) of (N, H, W, C), C a multiple of LANES, and its gradients.
 * Where x is what ELU gave, the gradient is of what ELU was given. GELU may follow at once, and its gradient is computed from
 * x; or 2x2 max-pooling: the largest of four is all that is written then, with a byte that says which of them it was (0 to
 * 3), and the gradient comes in that form. H and W are even with it.
 */
#include "kernels.h"
#include <math.h>

#define PARTS 64          /* that sums are made of, however many threads there are: results depend on none */
#define PIXELS 64         /* summed in float32 before they are added to a sum in float64: few enough to stay in a cache */
#define MOST_CHANNELS 2048

typedef struct {
    parallel_region *parallel;
    long threads, n, h, w, channels, after_elu, before_gelu, pooled;
    const element *x;
    const float *weight, *bias; /* weight NULL: ones */
    element *y;                 /* the outputs, or their gradient */
    uint8_t *marks;             /* of pooled y */
    element *dx;                /* the gradients of x, weight (if there is one) and bias */
    float *dweight, *dbias;
    float *mean, *variance; /* of each channel, the variance without Bessel's correction */
    float *running_mean, *running_variance; /* averages over the steps, the variance with Bessel's correction */
    double *sums;                           /* [PARTS][2][channels] */
    double momentum;                        /* of those averages, in PyTorch's sense */
    float epsilon;
    phase first_phase, second_phase;
} task;

/* y = scale x + shift of each channel; dx = scale dy + slope x + offset */
typedef struct {
    float scale[MOST_CHANNELS], shift[MOST_CHANNELS], slope[MOST_CHANNELS], offset[MOST_CHANNELS];
} factors;

INLINE vector scaled(const factors *f, long c, vector x) { return load(f->scale + c) * x + load(f->shift + c); }

INLINE long all_pixels(const task *t) { return t->n * t->h * t->w; }
INLINE long all_squares(const task *t) { return all_pixels(t) / 4; }

/* ---- squares of pooled pictures ---- */

/* The first value of number `square` in x */
INLINE long place_of(const task *t, long square) {
    uint32_t across = t->w / 2, row = (uint32_t)square / across;
    return (2 * row * t->w + 2 * ((uint32_t)square % across)) * t->channels;
}

/* ---- sums of a part: of d and d^2, where d is x less a mean of few pixels, or of dy and dy (x - mean). Without what is
 * subtracted, values far from 0 would lose what is to be known of them. `wide` vectors of channels. ---- */

typedef enum { VALUES, GRADIENTS, GELU_GRADIENTS, POOLED_GRADIENTS } summands;

INLINE void sum_values(const task *t, const factors *f, summands of, vector subtracted, long i, long c, vector *one,
                       vector *two) {
    long at = i * t->channels + c;
    vector x, dy;
    if (of == POOLED_GRADIENTS) {
        const element *square = t->x + place_of(t, i) + c;
        dy = load_elements(t->y + at), x = load_elements(square);
        UNROLL for (int k = 1; k < 4; k++)
            x = chosen(mark_is(t->marks + at, k), load_elements(square + in_square(t->w, t->channels, k)), x);
    } else {
        x = load_elements(t->x + at);
        dy = of == VALUES ? x - subtracted : load_elements(t->y + at);
        if (of == GELU_GRADIENTS) dy *= gelu_slope(scaled(f, c, x));
    }
    *one += dy, *two += dy * (x - subtracted);
}

INLINE void add_to(double *sums, vector more) {
    doubles sum;
    memcpy(&sum, sums, sizeof sum);
    sum += __builtin_convertvector(more, doubles);
    memcpy(sums, &sum, sizeof sum);
}

INLINE void sum_channels(const task *t, const factors *f, summands of, int wide, long first, long last, long c,
                         double *sums) {
    vector subtracted[2], one[2] = {0}, two[2] = {0};
    UNROLL for (int k = 0; k < wide; k++) subtracted[k] = load(t->mean + c + k * LANES);
    for (long i = first; i < last; i++)
        UNROLL for (int k = 0; k < wide; k++)
            sum_values(t, f, of, subtracted[k], i, c + k * LANES, &one[k], &two[k]);
    UNROLL for (int k = 0; k < wide; k++) {
        add_to(sums + c + k * LANES, one[k]);
        add_to(sums + t->channels + c + k * LANES, two[k]);
    }
}

INLINE void sum_part(const task *t, const factors *f, summands of, long part) {
    long all = of == POOLED_GRADIENTS ? all_squares(t) : all_pixels(t), last = all * (part + 1) / PARTS;
    double *sums = t->sums + part * 2 * t->channels;
    memset(sums, 0, 2 * t->channels * sizeof *sums);
    for (long first = all * part / PARTS; first < last; first += PIXELS) {
        long end = smaller(first + PIXELS, last), c = 0;
        for (; c + PANEL <= t->channels; c += PANEL) sum_channels(t, f, of, 2, first, end, c, sums);
        if (c < t->channels) sum_channels(t, f, of, 1, first, end, c, sums);
    }
}

/* Before the second phase */
INLINE void sum_parts(task *t, const factors *f, summands of) {
    for (long part; (part = take(&t->first_phase)) < PARTS; done(&t->first_phase)) sum_part(t, f, of, part);
    wait_for(&t->first_phase, PARTS);
}

/* Of LANES channels */
INLINE doubles total_of(const task *t, int which, long c) {
    doubles total = {0};
    for (long part = 0; part < PARTS; part++) {
        doubles sum;
        memcpy(&sum, t->sums + (2 * part + which) * t->channels + c, sizeof sum);
        total += sum;
    }
    return total;
}

/* ---- forward ---- */

/* Of LANES channels */
INLINE void statistics_of(const task *t, long c, doubles *mean, doubles *variance) {
    doubles difference = total_of(t, 0, c) / (double)all_pixels(t);
    *mean = __builtin_convertvector(load(t->mean + c), doubles) + difference;
    *variance = total_of(t, 1, c) / (double)all_pixels(t) - difference * difference;
    for (int i = 0; i < LANES; i++)
        if ((*variance)[i] < 0.0) (*variance)[i] = 0.0; /* NaN stays */
}

INLINE double inverse_deviation(const task *t, float variance) { return 1.0 / sqrt((double)variance + t->epsilon); }

/* `mean` and `variance` as they are kept, so that the same outputs can be computed again */
INLINE void set_forward(const task *t, long c, float mean, float variance, factors *f) {
    double scale = (t->weight ? t->weight[c] : 1.0) * inverse_deviation(t, variance);
    f->scale[c] = scale, f->shift[c] = t->bias[c] - scale * mean;
}

static void forward_of_sums(const task *t, factors *f) {
    for (long c = 0; c < t->channels; c += LANES) {
        doubles mean, variance;
        statistics_of(t, c, &mean, &variance);
        for (int i = 0; i < LANES; i++) set_forward(t, c + i, mean[i], variance[i], f);
    }
}

static void forward_of_kept(const task *t, factors *f) {
    for (long c = 0; c < t->channels; c++) set_forward(t, c, t->mean[c], t->variance[c], f);
}

INLINE void normalise_pixel(const task *t, const factors *f, int gelu, long pixel) {
    for (long c = 0; c < t->channels; c += LANES) {
        long at = pixel * t->channels + c;
        vector y = scaled(f, c, load_elements(t->x + at));
        store_elements(t->y + at, gelu ? gelu_of(y) : y);
    }
}

INLINE void normalise_square(const task *t, const factors *f, long square) {
    const element *x = t->x + place_of(t, square);
    for (long c = 0; c < t->channels; c += LANES) {
        vector y[4];
        bits which;
        UNROLL for (int i = 0; i < 4; i++)
            y[i] = scaled(f, c, load_elements(x + in_square(t->w, t->channels, i) + c));
        vector largest = largest_of_four(y, &which);
        bytes marks = __builtin_convertvector(which, bytes);
        store_elements(t->y + square * t->channels + c, largest);
        memcpy(t->marks + square * t->channels + c, &marks, sizeof marks);
    }
}

INLINE void write_outputs(task *t, const factors *f, int gelu) {
    long all = t->pooled ? all_squares(t) : all_pixels(t);
    for (long part; (part = take(&t->second_phase)) < PARTS;)
        for (long i = all * part / PARTS; i < all * (part + 1) / PARTS; i++)
            if (t->pooled)
                normalise_square(t, f, i);
            else
                normalise_pixel(t, f, gelu, i);
}

static void write_all_outputs(task *t, const factors *f) {
    if (t->before_gelu)
        write_outputs(t, f, 1);
    else
        write_outputs(t, f, 0);
}

static void forward_as_thread(void *data) {
    task *t = data;
    factors f;
    sum_parts(t, NULL, VALUES);
    forward_of_sums(t, &f);
    write_all_outputs(t, &f);
}

static void again_as_thread(void *data) {
    factors f;
    forward_of_kept(data, &f);
    write_all_outputs(data, &f);
}

/* ---- backward ---- */

/* Into dweight, the sums of dy times the normalised x, and dbias, those of dy */
static void sum_gradients(const task *t) {
    for (long c = 0; c < t->channels; c += LANES) {
        doubles one = total_of(t, 0, c), two = total_of(t, 1, c);
        for (int i = 0; i < LANES; i++) {
            if (t->dweight) t->dweight[c + i] = two[i] * inverse_deviation(t, t->variance[c + i]);
            t->dbias[c + i] = one[i];
        }
    }
}

static void backward_factors(const task *t, factors *f) {
    for (long from = 0; from < t->channels; from += LANES) {
        doubles one = total_of(t, 0, from), two = total_of(t, 1, from);
        for (int i = 0; i < LANES; i++) {
            long c = from + i;
            double inverse = inverse_deviation(t, t->variance[c]);
            double slope = -f->scale[c] * inverse * inverse * two[i] / all_pixels(t);
            f->slope[c] = slope, f->offset[c] = -f->scale[c] * one[i] / all_pixels(t) - slope * t->mean[c];
        }
    }
}

INLINE void write_gradient(const task *t, const factors *f, int elu, int gelu, long at, long c, vector dy) {
    vector x = load_elements(t->x + at);
    if (gelu) dy *= gelu_slope(scaled(f, c, x));
    vector dx = load(f->scale + c) * dy + (load(f->slope + c) * x + load(f->offset + c));
    store_elements(t->dx + at, elu ? dx * elu_slope(x) : dx);
}

INLINE void gradient_of_pixel(const task *t, const factors *f, int elu, int gelu, long pixel) {
    for (long c = 0; c < t->channels; c += LANES) {
        long at = pixel * t->channels + c;
        write_gradient(t, f, elu, gelu, at, c, load_elements(t->y + at));
    }
}

INLINE void gradient_of_square(const task *t, const factors *f, int elu, long square) {
    long place = place_of(t, square);
    for (long c = 0; c < t->channels; c += LANES) {
        long at = square * t->channels + c;
        vector dy = load_elements(t->y + at);
        UNROLL for (int i = 0; i < 4; i++) {
            vector there = (vector)((bits)dy & mark_is(t->marks + at, i));
            write_gradient(t, f, elu, 0, place + in_square(t->w, t->channels, i) + c, c, there);
        }
    }
}

INLINE void write_gradients(task *t, const factors *f, int elu, int gelu) {
    long all = t->pooled ? all_squares(t) : all_pixels(t);
    for (long part; (part = take(&t->second_phase)) < PARTS;)
        for (long i = all * part / PARTS; i < all * (part + 1) / PARTS; i++)
            if (t->pooled)
                gradient_of_square(t, f, elu, i);
            else
                gradient_of_pixel(t, f, elu, gelu, i);
}

static void backward_as_thread(void *data) {
    task *t = data;
    factors f;
    forward_of_kept(t, &f);
    if (t->pooled)
        sum_parts(t, &f, POOLED_GRADIENTS);
    else if (t->before_gelu)
        sum_parts(t, &f, GELU_GRADIENTS);
    else
        sum_parts(t, &f, GRADIENTS);
    backward_factors(t, &f);
    if (t->before_gelu)
        write_gradients(t, &f, 0, 1);
    else if (t->after_elu)
        write_gradients(t, &f, 1, 0);
    else
        write_gradients(t, &f, 0, 0);
}

/* ---- what is called ---- */

/* Of the first pixel of each part: one alone may be far from the others */
static void mean_of_few(task *t) {
    for (long c = 0; c < t->channels; c += LANES) {
        vector sum = {0};
        for (long part = 0; part < PARTS; part++)
            sum += load_elements(t->x + all_pixels(t) * part / PARTS * t->channels + c) / PARTS;
        memcpy(t->mean + c, &sum, sizeof sum);
    }
}

static void move_towards(float *running, double value, double momentum) {
    *running = (1.0 - momentum) * *running + momentum * value;
}

/* y, mean and variance from x, weight and bias, and the running ones */
void normalise(task *t) {
    mean_of_few(t);
    t->parallel(forward_as_thread, t, t->threads);
    double unbiased = all_pixels(t) / (all_pixels(t) - 1.0);
    for (long from = 0; from < t->channels; from += LANES) {
        doubles mean, variance;
        statistics_of(t, from, &mean, &variance);
        for (int i = 0; i < LANES; i++) {
            long c = from + i;
            t->mean[c] = mean[i], t->variance[c] = variance[i];
            move_towards(t->running_mean + c, mean[i], t->momentum);
            move_towards(t->running_variance + c, variance[i] * unbiased, t->momentum);
        }
    }
}

/* y once more, from x, weight, bias, mean and variance */
void normalise_again(task *t) { t->parallel(again_as_thread, t, t->threads); }

/* dx, dweight and dbias from x, weight, bias, y (which is a gradient), mean and variance */
void normalise_gradient(task *t) {
    t->parallel(backward_as_thread, t, t->threads);
    sum_gradients(t);
}
