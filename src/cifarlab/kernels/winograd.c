/* Convolutions with stride 1, with or without rows and columns of zeros around, by Winograd's method (Lavin and Gray,
 * "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). A tile of SIDE x SIDE inputs gives OUT x OUT outputs
 * for SIDE x SIDE multiplications: F(4x4, 3x3) has 36 in place of 144, F(6x6, 3x3) 64 in place of 324, F(2x2, 5x5) 36 in
 * place of 100, F(2x2, 3x3) 16 in place of 36. Pictures are (N, H, W, C), outputs with C a multiple of 8. A block of tiles
 * is transformed, multiplied and transformed back before the next one, so that what is between stays in a cache.
 *
 * 2x2 max-pooling and ReLU may follow at once: with pooling the largest of four outputs is all that is written. One byte
 * of each output then says which of the four it was, or, without pooling, 0; and DEAD where ReLU made it 0. The gradient
 * comes in the same form, and is spread when it is read.
 *
 * Compiled once for each kind of processor and method: LANES and BF16, as in kernels.h, SIDE and KERNEL.
 */
#include "kernels.h"

#define OUT (SIDE - KERNEL + 1) /* even */
#define POINTS (SIDE * SIDE)    /* of the transformed tile */
#define TAPS (KERNEL * KERNEL)
#define PAIR (LANES / 8)        /* tiles transformed at once, 8 channels of each, where channels are not whole vectors */
#define GROUP 8                 /* input channels that lie together for the weights' gradient */
#define GROUP_ROWS (LANES / 2)  /* of them that one product computes: with 8, AVX2's sums would not fit the registers */
#define MOST_TILES 48           /* of a block: whole ROWS */
#define MOST_BYTES ((SIDE == 8 ? 3200 : BF16 ? 448 : 288) << 10) /* of a block's transformed inputs */
#define PANELS_AT_ONCE (SIDE == 8 ? MOST_CHANNELS / PANEL : 1) /* of a block: see convolve_block */
#define GRADIENT_BLOCK 64       /* tiles summed over before the sums are written */
#define MOST_CHANNELS 2048
#define SPREAD 64 /* bytes between the planes of two points: without, all fall into the same sets of the cache */
#define DEAD 255

typedef struct {
    element *values; /* (n, h, w, channels), or pooled: (n, h / 2, w / 2, channels) */
    uint8_t *marks;  /* of each value, see above; NULL: neither pooled nor after ReLU */
    long h, w, channels, pooled;
} pictures;

/* A call, as cifarlab.kernels.winograd makes it. `x` has `padding` rows and columns of zeros on each side. */
typedef struct {
    parallel_region *parallel;
    long threads, n, padding, relu, elu; /* of y; ELU without pooling, and its gradient is not computed here */
    pictures x, y;         /* y: the outputs, or their gradient */
    float *weight;         /* element (f, c, i, j) at f, c, i, j times these, or the gradient */
    long strides[4];
    long size, first_tap;  /* rows and columns that `weight` has, and where in the kernel; the others are zeros */
    float *bias;           /* of the outputs, or its gradient; may be NULL */
    word *transformed;     /* weights: [u_plane][channel][PANEL] */
    float *sums;           /* of the weights' gradient, else NULL: [part][point][panel][channel / GROUP][GROUP][PANEL] */
    float *bias_sums;      /* [part][panel][PANEL * PAIR], of whole vectors */
    char *workspace;       /* `workspace_bytes` of each thread */
    long parts, tile_rows, tile_columns, block;
    atomic_long entered; /* threads */
    phase first_phase, second_phase;
} task;

typedef struct {
    long image, y, x; /* of the upper left output */
} place;

enum form { PLAIN, PARTIAL, MARKED, POOLED }; /* PARTIAL: plain, and channels are no multiple of 8 */

long workspace_bytes(const task *t);

INLINE long all_tiles(const task *t) { return t->n * t->tile_rows * t->tile_columns; }
INLINE long whole_groups(long channels) { return (channels + 7) / 8 * 8; }
INLINE long depth_of(long channels) { return (channels + PER_WORD - 1) / PER_WORD; } /* in words */
INLINE enum form form_of(const pictures *p) {
    return p->pooled ? POOLED : p->marks ? MARKED : p->channels % 8 ? PARTIAL : PLAIN;
}

INLINE place place_of(const task *t, long tile) {
    uint32_t columns = t->tile_columns, rows = t->tile_rows, row = (uint32_t)tile / columns; /* faster than of long */
    return (place){row / rows, row % rows * OUT, (uint32_t)tile % columns * OUT};
}

/* ---- transforms of a line, by the paper's method: at the points 0, 1, -1 and infinity, from a SIDE of 6 on 2 and -2, and
 * of 8 on 1/2 and -1/2, at which weights are divided by 32 and outputs multiplied. Elements are `s` and `t` vectors apart. ---- */

INLINE void input_line(const vector *d, int s, vector *v, int t) { /* B^T d: SIDE to SIDE */
#if SIDE == 4
    v[0] = d[0] - d[2 * s];
    v[t] = d[s] + d[2 * s];
    v[2 * t] = d[2 * s] - d[s];
    v[3 * t] = d[s] - d[3 * s];
#elif SIDE == 8
    vector even = d[2 * s] - 4.25f * d[4 * s] + d[6 * s], odd = d[s] - 4.25f * d[3 * s] + d[5 * s];
    vector even_2 = 0.25f * d[2 * s] - 1.25f * d[4 * s] + d[6 * s];
    vector odd_2 = 0.5f * d[s] - 2.5f * d[3 * s] + 2.0f * d[5 * s];
    vector even_half = 4.0f * d[2 * s] - 5.0f * d[4 * s] + d[6 * s];
    vector odd_half = 2.0f * d[s] - 2.5f * d[3 * s] + 0.5f * d[5 * s];
    v[0] = d[0] - d[6 * s] + 5.25f * (d[4 * s] - d[2 * s]);
    v[t] = even + odd;
    v[2 * t] = even - odd;
    v[3 * t] = even_2 + odd_2;
    v[4 * t] = even_2 - odd_2;
    v[5 * t] = even_half + odd_half;
    v[6 * t] = even_half - odd_half;
    v[7 * t] = d[7 * s] - d[s] + 5.25f * (d[3 * s] - d[5 * s]);
#else
    vector even = d[4 * s] - 4.0f * d[2 * s], odd = d[3 * s] - 4.0f * d[s];
    vector less = d[4 * s] - d[2 * s], twice = 2.0f * (d[3 * s] - d[s]);
    v[0] = 4.0f * (d[0] - d[2 * s]) + less;
    v[t] = even + odd;
    v[2 * t] = even - odd;
    v[3 * t] = less + twice;
    v[4 * t] = less - twice;
    v[5 * t] = d[5 * s] - d[3 * s] - 4.0f * (d[3 * s] - d[s]);
#endif
}

INLINE void output_line(const vector *m, int s, vector *y, int t) { /* A^T m: SIDE to OUT */
    vector sum = m[s] + m[2 * s], difference = m[s] - m[2 * s];
#if SIDE == 4
    y[0] = m[0] + sum;
    y[t] = difference - m[3 * s];
#elif SIDE == 8
    vector sum_2 = m[3 * s] + m[4 * s], difference_2 = m[3 * s] - m[4 * s];
    vector sum_half = m[5 * s] + m[6 * s], difference_half = m[5 * s] - m[6 * s];
    y[0] = m[0] + sum + sum_2 + 32.0f * sum_half;
    y[t] = difference + 2.0f * difference_2 + 16.0f * difference_half;
    y[2 * t] = sum + 4.0f * sum_2 + 8.0f * sum_half;
    y[3 * t] = difference + 8.0f * difference_2 + 4.0f * difference_half;
    y[4 * t] = sum + 16.0f * sum_2 + 2.0f * sum_half;
    y[5 * t] = difference + 32.0f * difference_2 + difference_half + m[7 * s];
#else
    vector sum_2 = m[3 * s] + m[4 * s], difference_2 = m[3 * s] - m[4 * s];
    y[0] = m[0] + sum + sum_2;
    y[t] = difference + 2.0f * difference_2;
#if OUT == 4
    y[2 * t] = sum + 4.0f * sum_2;
    y[3 * t] = difference + 8.0f * difference_2 + m[5 * s];
#else
    y[t] += m[5 * s];
#endif
#endif
}

INLINE void gradient_line(const vector *y, int s, vector *z, int t) { /* A y: OUT to SIDE */
#if SIDE == 4
    z[0] = y[0];
    z[t] = y[0] + y[s];
    z[2 * t] = y[0] - y[s];
    z[3 * t] = -y[s];
#elif SIDE == 8
    vector even = y[0] + y[2 * s] + y[4 * s], odd = y[s] + y[3 * s] + y[5 * s];
    vector even_2 = y[0] + 4.0f * y[2 * s] + 16.0f * y[4 * s];
    vector odd_2 = 2.0f * y[s] + 8.0f * y[3 * s] + 32.0f * y[5 * s];
    vector even_half = 32.0f * y[0] + 8.0f * y[2 * s] + 2.0f * y[4 * s];
    vector odd_half = 16.0f * y[s] + 4.0f * y[3 * s] + y[5 * s];
    z[0] = y[0];
    z[t] = even + odd;
    z[2 * t] = even - odd;
    z[3 * t] = even_2 + odd_2;
    z[4 * t] = even_2 - odd_2;
    z[5 * t] = even_half + odd_half;
    z[6 * t] = even_half - odd_half;
    z[7 * t] = y[5 * s];
#else
    vector even = y[0], odd = y[s], even_2 = y[0], odd_2 = 2.0f * y[s];
#if OUT == 4
    even += y[2 * s], odd += y[3 * s], even_2 += 4.0f * y[2 * s], odd_2 += 8.0f * y[3 * s];
#endif
    z[0] = y[0];
    z[t] = even + odd;
    z[2 * t] = even - odd;
    z[3 * t] = even_2 + odd_2;
    z[4 * t] = even_2 - odd_2;
    z[5 * t] = y[(OUT - 1) * s];
#endif
}

INLINE void weight_line(const vector *g, int s, vector *u, int t) { /* G g: KERNEL to SIDE */
    vector even = g[0] + g[2 * s], odd = g[s];
#if SIDE == 4
    u[0] = g[0];
    u[t] = 0.5f * (even + odd);
    u[2 * t] = 0.5f * (even - odd);
    u[3 * t] = g[2 * s];
#elif SIDE == 8
    vector even_2 = g[0] + 4.0f * g[2 * s], even_half = 4.0f * g[0] + g[2 * s], twice = 2.0f * odd;
    u[0] = g[0];
    u[t] = (even + odd) * (-2 / 9.0f);
    u[2 * t] = (even - odd) * (-2 / 9.0f);
    u[3 * t] = (even_2 + twice) * (1 / 90.0f);
    u[4 * t] = (even_2 - twice) * (1 / 90.0f);
    u[5 * t] = (even_half + twice) * (1 / 180.0f);
    u[6 * t] = (even_half - twice) * (1 / 180.0f);
    u[7 * t] = g[2 * s];
#else
    vector even_2 = g[0] + 4.0f * g[2 * s], odd_2 = 2.0f * g[s];
#if KERNEL == 5
    even += g[4 * s], odd += g[3 * s], even_2 += 16.0f * g[4 * s], odd_2 += 8.0f * g[3 * s];
#endif
    u[0] = g[0] * (1 / 4.0f);
    u[t] = (even + odd) * (-1 / 6.0f);
    u[2 * t] = (even - odd) * (-1 / 6.0f);
    u[3 * t] = (even_2 + odd_2) * (1 / 24.0f);
    u[4 * t] = (even_2 - odd_2) * (1 / 24.0f);
    u[5 * t] = g[(KERNEL - 1) * s];
#endif
}

INLINE void weight_gradient_line(const vector *u, int s, vector *g, int t) { /* G^T u: SIDE to KERNEL */
#if SIDE == 4
    vector sum = 0.5f * (u[s] + u[2 * s]), difference = 0.5f * (u[s] - u[2 * s]);
    g[0] = u[0] + sum;
    g[t] = difference;
    g[2 * t] = sum + u[3 * s];
#elif SIDE == 8
    vector sum = (u[s] + u[2 * s]) * (-2 / 9.0f), difference = (u[s] - u[2 * s]) * (-2 / 9.0f);
    vector sum_2 = (u[3 * s] + u[4 * s]) * (1 / 90.0f), difference_2 = (u[3 * s] - u[4 * s]) * (1 / 90.0f);
    vector sum_half = (u[5 * s] + u[6 * s]) * (1 / 180.0f), difference_half = (u[5 * s] - u[6 * s]) * (1 / 180.0f);
    g[0] = u[0] + sum + sum_2 + 4.0f * sum_half;
    g[t] = difference + 2.0f * (difference_2 + difference_half);
    g[2 * t] = sum + 4.0f * sum_2 + sum_half + u[7 * s];
#else
    vector sum = (u[s] + u[2 * s]) * (-1 / 6.0f), difference = (u[s] - u[2 * s]) * (-1 / 6.0f);
    vector sum_2 = (u[3 * s] + u[4 * s]) * (1 / 24.0f), difference_2 = (u[3 * s] - u[4 * s]) * (1 / 24.0f);
    UNROLL for (int i = 0; i < KERNEL; i++)
        g[i * t] = i % 2 ? difference + (float)(1 << i) * difference_2 : sum + (float)(1 << i) * sum_2;
    g[0] += u[0] * (1 / 4.0f);
    g[(KERNEL - 1) * t] += u[5 * s];
#endif
}

/* From FROM x FROM vectors to TO x TO: columns, then rows. */
#define IN_BOTH_DIRECTIONS(NAME, LINE, FROM, TO)                                                                \
    INLINE void NAME(const vector in[FROM * FROM], vector out[TO * TO]) {                                        \
        vector between[TO * FROM];                                                                              \
        UNROLL for (int j = 0; j < FROM; j++) LINE(in + j, FROM, between + j, FROM);                            \
        UNROLL for (int i = 0; i < TO; i++) LINE(between + i * FROM, 1, out + i * TO, 1);                       \
    }
IN_BOTH_DIRECTIONS(transform_input, input_line, SIDE, SIDE)
IN_BOTH_DIRECTIONS(transform_output, output_line, SIDE, OUT)
IN_BOTH_DIRECTIONS(transform_gradient, gradient_line, OUT, SIDE)
IN_BOTH_DIRECTIONS(transform_weight, weight_line, KERNEL, SIDE)
IN_BOTH_DIRECTIONS(transform_weight_gradient, weight_gradient_line, SIDE, KERNEL)

/* ---- squares of pictures ---- */

typedef struct {
    const element *values[POINTS];
    const uint8_t *marks[POINTS];
} patch; /* where the pixels of a square begin */

/* The square of side x side pixels from (y, x) on; zeros outside of the picture, and without `inside`. */
INLINE patch patch_at(const pictures *from, enum form form, int inside, long image, long y, long x, int side) {
    static const element zeros[MOST_CHANNELS];
    static const uint8_t none[MOST_CHANNELS];
    static const long outside = -(1L << 60);
    int half = form == POOLED;
    long h = from->h >> half, w = from->w >> half, rows[SIDE], columns[SIDE];
    UNROLL for (int i = 0; i < side; i++) {
        long row = (y + i) >> half, column = (x + i) >> half;
        rows[i] = inside && row >= 0 && row < h ? (image * h + row) * w * from->channels : outside;
        columns[i] = column >= 0 && column < w ? column * from->channels : outside;
    }
    patch square;
    UNROLL for (int i = 0; i < side * side; i++) {
        long offset = rows[i / side] + columns[i % side];
        square.values[i] = offset < 0 ? zeros : from->values + offset;
        if (form >= MARKED) square.marks[i] = offset < 0 ? none : from->marks + offset;
    }
    return square;
}

/* 8 channels, of which `there` are there: the others are 0, and are not touched */
INLINE void load_partial(const element *from, long there, element *to) {
#if BF16
    __m128i e = _mm_maskz_loadu_epi16((1 << there) - 1, from);
#elif LANES == 16
    __m256 e = _mm256_maskz_loadu_ps((1 << there) - 1, from);
#else
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(there), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    __m256 e = _mm256_maskload_ps(from, mask);
#endif
    memcpy(to, &e, sizeof e);
}

/* A vector of channels of pixel i in `many` squares, as many of each; 0 where the mark is not `mark` */
INLINE vector load_pixels(const pictures *from, const patch *squares, int many, enum form form, int i, uint8_t mark,
                          long c) {
    elements e;
    int each = LANES / many;
    for (int k = 0; k < many; k++)
        if (form == PARTIAL && c + 8 > from->channels)
            load_partial(squares[k].values[i] + c, from->channels - c, (element *)&e + each * k);
        else
            memcpy((element *)&e + each * k, squares[k].values[i] + c, each * sizeof(element));
#if BF16
    bits v = __builtin_convertvector(e, bits) << 16;
#else
    bits v = (bits)e;
#endif
    if (form >= MARKED) {
        bytes marks;
        for (int k = 0; k < many; k++) memcpy((uint8_t *)&marks + each * k, squares[k].marks[i] + c, each);
        v &= (bits)__builtin_convertvector((signed_bytes)(marks == mark), signs);
    }
    return (vector)v;
}

/* Of `many` squares with a side of `side` pixels, whose first row and column are odd ones or even ones */
INLINE void load_squares(const pictures *from, const patch *squares, int many, enum form form, int side, int odd,
                         long c, vector *d) {
    UNROLL for (int i = 0; i < side * side; i++) {
        uint8_t mark = form == POOLED ? (i / side + odd) % 2 * 2 + (i % side + odd) % 2 : 0;
        d[i] = load_pixels(from, squares, many, form, i, mark, c);
    }
}

PRODUCT(product_of_rows, ROWS, 2)
PRODUCT(product_of_rows_half, ROWS, 1)
PRODUCT(product_of_group, GROUP_ROWS, 2)
PRODUCT(product_of_group_half, GROUP_ROWS, 1)

/* ---- the weights ---- */

/* Transformed weights lie in the order in which they are multiplied */
INLINE long u_plane(const task *t, long panel, long p) {
    return PANELS_AT_ONCE == 1 ? panel * POINTS + p : p * panels(t->y.channels) + panel;
}

/* Of the first filter; NULL if it is not there */
INLINE float *tap_of(const task *t, long channel, int i) {
    long row = i / KERNEL - t->first_tap, column = i % KERNEL - t->first_tap;
    if (row < 0 || column < 0 || row >= t->size || column >= t->size) return NULL;
    return t->weight + channel * t->strides[1] + row * t->strides[2] + column * t->strides[3];
}

/* Those of a channel and a panel of filters: taps[i][PANEL / LANES] */
INLINE void load_weights(const task *t, long channel, long panel, vector taps[TAPS][2]) {
    float gathered[TAPS][PANEL] = {0};
    long filters = channel < t->x.channels ? smaller(PANEL, t->y.channels - panel * PANEL) : 0;
    for (int i = 0; i < TAPS; i++) {
        const float *from = tap_of(t, channel, i);
        if (from)
            for (long f = 0; f < filters; f++) gathered[i][f] = from[(panel * PANEL + f) * t->strides[0]];
    }
    memcpy(taps, gathered, sizeof gathered);
}

static void transform_weights(const task *t, long channel) {
    long depth = depth_of(t->x.channels);
    for (long panel = 0; panel < panels(t->y.channels); panel++) {
        vector taps[TAPS][2];
        load_weights(t, channel, panel, taps);
        for (int half = 0; half < 2; half++) {
            vector in[TAPS], out[POINTS];
            UNROLL for (int i = 0; i < TAPS; i++) in[i] = taps[i][half];
            transform_weight(in, out);
            for (int p = 0; p < POINTS; p++) {
                elements e = narrow(out[p]);
                word *to = t->transformed + (u_plane(t, panel, p) * depth + channel / PER_WORD) * PANEL + half * LANES;
#if BF16
                for (int i = 0; i < LANES; i++) ((element *)(to + i))[channel % 2] = e[i];
#else
                memcpy(to, &e, sizeof e);
#endif
            }
        }
    }
}

/* ---- the convolution ---- */

INLINE long v_plane(const task *t) { return t->block * whole_groups(t->x.channels) + SPREAD / sizeof(element); }
INLINE long m_plane(const task *t) { return t->block * PANEL + SPREAD / sizeof(float); }

/* v[point][tile][channel], of `many` tiles at once */
INLINE void transform_some_inputs(const task *t, int many, enum form form, int odd, long first, long last, element *v) {
    int each = LANES / many;
    long channels = whole_groups(t->x.channels);
    for (long tile = first; tile < last; tile += many) {
        patch tiles[PAIR];
        for (int k = 0; k < many; k++) {
            place at = place_of(t, tile + k);
            tiles[k] = patch_at(&t->x, form, tile + k < last, at.image, at.y - t->padding, at.x - t->padding, SIDE);
        }
        for (long c = 0; c < channels; c += each) {
            vector pixels[POINTS], points[POINTS];
            load_squares(&t->x, tiles, many, form, SIDE, odd, c, pixels);
            transform_input(pixels, points);
            UNROLL for (int p = 0; p < POINTS; p++) {
                elements e = narrow(points[p]);
                element *to = v + p * v_plane(t) + (tile - first) * channels + c;
                for (int k = 0; k < many; k++)
                    memcpy(to + k * channels, (element *)&e + each * k, each * sizeof(element));
            }
        }
    }
}

INLINE void transform_inputs(const task *t, enum form form, int odd, long first, long last, element *v) {
    if (t->x.channels % LANES == 0)
        transform_some_inputs(t, 1, form, odd, first, last, v);
    else
        transform_some_inputs(t, PAIR, form, odd, first, last, v);
}

/* As many channels as there are, LANES or 8 */
INLINE void write_channels(const task *t, long c, void *to, const void *from, int bytes_each) {
    if (t->y.channels - c >= LANES)
        memcpy(to, from, LANES * bytes_each);
    else
        memcpy(to, from, 8 * bytes_each);
}

/* With marks and ReLU, or ELU, where those are wanted */
INLINE void write(const task *t, enum form form, long at, long c, vector v, bits marks) {
    if (form >= MARKED) {
        if (t->relu) {
            bits dead = (bits)(v <= 0.0f); /* NaN stays, as in PyTorch */
            v = chosen(dead, (vector){0}, v), marks |= dead & DEAD;
        }
        bytes narrowed = __builtin_convertvector(marks, bytes);
        write_channels(t, c, t->y.marks + at, &narrowed, 1);
    } else if (t->elu)
        v = elu_of(v);
    elements e = narrow(v);
    write_channels(t, c, t->y.values + at, &e, sizeof(element));
}

/* Of the four outputs from y on, `row` vectors from row to row */
INLINE void write_largest(const task *t, long at, long c, const vector *y, int row) {
    const vector four[4] = {y[0], y[1], y[row], y[row + 1]};
    bits which;
    vector largest = largest_of_four(four, &which);
    write(t, POOLED, at, c, largest, which);
}

INLINE vector load_bias(const task *t, long c) {
    vector bias = {0};
    if (t->bias) memcpy(&bias, t->bias + c, smaller(LANES, t->y.channels - c) * sizeof *t->bias);
    return bias;
}

INLINE void write_outputs(const task *t, enum form form, long first, long last, long panel, const float *m) {
    int step = form == POOLED ? 2 : 1;
    long h = t->y.h / step, w = t->y.w / step;
    for (long c = panel * PANEL; c < smaller(t->y.channels, (panel + 1) * PANEL); c += LANES) {
        vector bias = load_bias(t, c);
        for (long tile = first; tile < last; tile++) {
            place at = place_of(t, tile);
            vector points[POINTS], y[OUT * OUT];
            UNROLL for (int p = 0; p < POINTS; p++)
                points[p] = load(m + p * m_plane(t) + (tile - first) * PANEL + c % PANEL);
            transform_output(points, y);
            UNROLL for (int i = 0; i < OUT * OUT; i++) y[i] += bias;
            long rows = smaller(OUT, h * step - at.y), columns = smaller(OUT, w * step - at.x);
            long first_value = ((at.image * h + at.y / step) * w + at.x / step) * t->y.channels + c;
            UNROLL for (int i = 0; i < OUT; i += step)
                UNROLL for (int j = 0; j < OUT; j += step) {
                    if (i >= rows || j >= columns) continue;
                    long value = first_value + (i / step * w + j / step) * t->y.channels;
                    if (form == POOLED)
                        write_largest(t, value, c, y + i * OUT + j, OUT);
                    else
                        write(t, form, value, c, y[i * OUT + j], (bits){0});
                }
        }
    }
}

/* m[point][tile][PANEL] of a panel, at one point */
INLINE void multiply_point(const task *t, long tiles, long panel, long p, const element *v, float *m) {
    long row_of_v = whole_groups(t->x.channels) / PER_WORD, depth = depth_of(t->x.channels);
    const word *u = t->transformed + u_plane(t, panel, p) * depth * PANEL;
    const word *inputs = (const word *)(v + p * v_plane(t));
    float *outputs = m + p * m_plane(t);
    for (long row = 0; row < tiles; row += ROWS) /* those past the last tile are of no use, and no harm */
        (t->y.channels - panel * PANEL > LANES ? product_of_rows : product_of_rows_half)(
            inputs + row * row_of_v, row_of_v, 1, u, PANEL, outputs + row * PANEL, PANEL, depth, 0);
}

static void write_panel(const task *t, long first, long last, long panel, const float *m) {
    switch (form_of(&t->y)) {
    case PARTIAL: /* never */
    case PLAIN: write_outputs(t, PLAIN, first, last, panel, m); break;
    case MARKED: write_outputs(t, MARKED, first, last, panel, m); break;
    case POOLED: write_outputs(t, POOLED, first, last, panel, m); break;
    }
}

/* Of the tiles from `first` to `last`, with memory for transformed inputs and outputs. Large tiles go point by point: a
 * block of few of them would wait for weights, and one of many does not fit a core's cache, but what one point takes does. */
static void convolve_block(const task *t, long first, long last, element *v, float *m) {
    switch (form_of(&t->x)) {
    case PLAIN: transform_inputs(t, PLAIN, 0, first, last, v); break;
    case PARTIAL: transform_inputs(t, PARTIAL, 0, first, last, v); break;
    case MARKED: transform_inputs(t, MARKED, 0, first, last, v); break;
    case POOLED: /* tiles begin at even rows and columns */
        if (t->padding % 2)
            transform_inputs(t, POOLED, 1, first, last, v);
        else
            transform_inputs(t, POOLED, 0, first, last, v);
        break;
    }
    for (long panel = 0; panel < panels(t->y.channels); panel += PANELS_AT_ONCE) {
        long end = smaller(panel + PANELS_AT_ONCE, panels(t->y.channels));
        for (long p = 0; p < POINTS; p++)
            for (long each = panel; each < end; each++)
                multiply_point(t, last - first, each, p, v, m + (each - panel) * POINTS * m_plane(t));
        for (long each = panel; each < end; each++)
            write_panel(t, first, last, each, m + (each - panel) * POINTS * m_plane(t));
    }
}

static void convolve_as_thread(void *data) {
    task *t = data;
    element *v = (element *)(t->workspace + atomic_fetch_add(&t->entered, 1) * workspace_bytes(t));
    float *m = (float *)(v + POINTS * v_plane(t));
    long channels = depth_of(t->x.channels) * PER_WORD;
    for (long c; (c = take(&t->first_phase)) < channels; done(&t->first_phase)) transform_weights(t, c);
    wait_for(&t->first_phase, channels);
    for (long first; (first = t->block * take(&t->second_phase)) < all_tiles(t);)
        convolve_block(t, first, smaller(first + t->block, all_tiles(t)), v, m);
}

/* ---- the gradient of the weights: what is summed over is the tiles ---- */

#define MOST_DEPTH (GRADIENT_BLOCK / PER_WORD) /* of the words that hold a block's tiles */

INLINE long x_plane(const task *t) { return MOST_DEPTH * whole_groups(t->x.channels) + SPREAD / sizeof(word); }
INLINE long z_plane(const task *t) { return MOST_DEPTH * panels(t->y.channels) * PANEL + SPREAD / sizeof(word); }

/* 8 channels of PAIR tiles, or LANES of one, from tile `at` on: words[tile / PER_WORD][stride], the second 8 of one
 * tile `further` on */
INLINE void store_tiles(word *words, int many, long stride, long further, long at, vector v) {
    elements e = narrow(v);
#if BF16 /* two tiles are one word */
    const __m256i zip = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    __m256i zipped = _mm256_permutexvar_epi16(zip, (__m256i)e);
    memcpy(words + at / 2 * stride, &zipped, sizeof zipped);
#else
    for (int i = 0; i < PAIR; i++)
        memcpy(words + at * stride + i * (many == 1 ? further : stride), (word *)&e + 8 * i, 8 * sizeof(word));
#endif
}

/* v[point][channel / GROUP][tile][GROUP] of a block's tiles, PER_WORD of them a word */
INLINE void transform_under(const task *t, int many, enum form form, long first, long last, word *v) {
    for (long tile = 0; first + tile < last; tile += many) {
        patch under[PAIR];
        for (int k = 0; k < many; k++) {
            place at = place_of(t, first + tile + k);
            int inside = first + tile + k < last;
            under[k] = patch_at(&t->x, form, inside, at.image, at.y - t->padding, at.x - t->padding, SIDE);
        }
        for (long c = 0; c < t->x.channels; c += LANES / many) {
            vector pixels[POINTS], points[POINTS];
            load_squares(&t->x, under, many, form, SIDE, 0, c, pixels);
            transform_input(pixels, points);
            UNROLL for (int p = 0; p < POINTS; p++)
                store_tiles(v + p * x_plane(t) + c * MOST_DEPTH, many, GROUP, GROUP * MOST_DEPTH, tile, points[p]);
        }
    }
}

/* z[point][panel][tile][PANEL] likewise, and the sums of a gradient of the bias */
INLINE void transform_above(const task *t, int many, enum form form, long first, long last, word *z, float *bias) {
    for (long tile = 0; first + tile < last; tile += many) {
        patch above[PAIR];
        for (int k = 0; k < many; k++) {
            place at = place_of(t, first + tile + k);
            above[k] = patch_at(&t->y, form, first + tile + k < last, at.image, at.y, at.x, OUT);
        }
        for (long c = 0; c < t->y.channels; c += LANES / many) {
            vector pixels[OUT * OUT], points[POINTS];
            word *column = z + c / PANEL * PANEL * MOST_DEPTH + c % PANEL;
            load_squares(&t->y, above, many, form, OUT, 0, c, pixels);
            transform_gradient(pixels, points);
            UNROLL for (int p = 0; p < POINTS; p++) store_tiles(column + p * z_plane(t), many, PANEL, 8, tile, points[p]);
            vector sum = load(bias + c * many) + points[SIDE + 1]; /* at the point (1, 1) it is that of all outputs */
            memcpy(bias + c * many, &sum, sizeof sum);
        }
    }
}

/* Tiles of a transform at once: bfloat16 takes two for a word */
INLINE int tiles_at_once(long channels) { return PER_WORD == 1 && channels % LANES == 0 ? 1 : PAIR; }

INLINE void transform_block(const task *t, enum form form, long first, long last, word *v, word *z, float *bias) {
    if (t->x.channels % 8)
        transform_under(t, PAIR, PARTIAL, first, last, v);
    else if (tiles_at_once(t->x.channels) == 1)
        transform_under(t, 1, PLAIN, first, last, v);
    else
        transform_under(t, PAIR, PLAIN, first, last, v);
    if (tiles_at_once(t->y.channels) == 1)
        transform_above(t, 1, form, first, last, z, bias);
    else
        transform_above(t, PAIR, form, first, last, z, bias);
}

/* Of the tiles of a part, to its own sums */
static void sum_gradients(const task *t, long part, word *v, word *z) {
    long ci = whole_groups(t->x.channels), wide = panels(t->y.channels) * PANEL, tiles = all_tiles(t);
    float *sums = t->sums + part * POINTS * ci * wide, *bias = t->bias_sums + part * wide * PAIR;
    long begin = tiles * part / t->parts, end = tiles * (part + 1) / t->parts;
    memset(bias, 0, wide * PAIR * sizeof *bias);
    for (long first = begin; first < end; first += GRADIENT_BLOCK) {
        long last = smaller(first + GRADIENT_BLOCK, end), depth = (last - first + PER_WORD - 1) / PER_WORD;
        switch (form_of(&t->y)) {
        case PARTIAL: /* never */
        case PLAIN: transform_block(t, PLAIN, first, last, v, z, bias); break;
        case MARKED: transform_block(t, MARKED, first, last, v, z, bias); break;
        case POOLED: transform_block(t, POOLED, first, last, v, z, bias); break;
        }
        for (long p = 0; p < POINTS; p++)
            for (long column = 0; column < wide; column += PANEL)
                for (long c = 0; c < ci; c += GROUP_ROWS)
                    (t->y.channels - column > LANES ? product_of_group : product_of_group_half)(
                        v + p * x_plane(t) + c / GROUP * GROUP * MOST_DEPTH + c % GROUP, 1, GROUP,
                        z + p * z_plane(t) + column * MOST_DEPTH, PANEL,
                        sums + (p * wide + column) * ci + c * PANEL, PANEL, depth, first > begin);
    }
}

/* The sums of all parts, of one input channel, transformed, to where the gradient is wanted */
static void finish_gradient(const task *t, long c) {
    long ci = whole_groups(t->x.channels), co = t->y.channels, wide = panels(co) * PANEL;
    for (long column = 0; column < co; column += LANES) {
        vector points[POINTS] = {0}, taps[TAPS];
        const float *from = t->sums + column / PANEL * PANEL * ci + c * PANEL + column % PANEL;
        for (long part = 0; part < t->parts; part++, from += POINTS * ci * wide)
            for (int p = 0; p < POINTS; p++) points[p] += load(from + p * wide * ci);
        transform_weight_gradient(points, taps);
        for (int i = 0; i < TAPS; i++) {
            float *to = tap_of(t, c, i);
            if (to)
                for (long f = 0; f < smaller(LANES, co - column); f++) to[(column + f) * t->strides[0]] = taps[i][f];
        }
    }
}

/* The sums of all parts; whichever thread comes first takes the next one */
static void sum_parts(task *t) {
    word *v = (word *)(t->workspace + atomic_fetch_add(&t->entered, 1) * workspace_bytes(t));
    word *z = v + POINTS * x_plane(t);
    for (long part; (part = take(&t->first_phase)) < t->parts; done(&t->first_phase)) sum_gradients(t, part, v, z);
}

static void finish_gradients(task *t) {
    wait_for(&t->first_phase, t->parts);
    for (long c; (c = take(&t->second_phase)) < t->x.channels;) finish_gradient(t, c);
}

typedef struct {
    task *of_weights, *of_images; /* the second may be NULL */
} both;

/* Parts are large, and blocks of the images' gradient small: a thread that has finished its part early takes those */
static void gradients_as_thread(void *data) {
    both *t = data;
    sum_parts(t->of_weights);
    if (t->of_images) convolve_as_thread(t->of_images);
    finish_gradients(t->of_weights);
}

static void finish_bias(const task *t) {
    long wide = panels(t->y.channels) * PANEL;
    int many = tiles_at_once(t->y.channels), each = LANES / many;
    for (long c = 0; c < t->y.channels; c++) {
        float sum = 0.0f;
        for (long part = 0; part < t->parts; part++)
            for (int k = 0; k < many; k++)
                sum += t->bias_sums[part * wide * PAIR + c / each * LANES + k * each + c % each];
        t->bias[c] = sum;
    }
}

/* ---- what is called ---- */

/* Tiles, and blocks of them: to be called first, with all that says how large things are */
void plan(task *t) {
    int pooled = t->y.pooled ? 2 : 1;
    t->tile_rows = (t->y.h / pooled * pooled + OUT - 1) / OUT;
    t->tile_columns = (t->y.w / pooled * pooled + OUT - 1) / OUT;
    long fitting = MOST_BYTES / (POINTS * whole_groups(t->x.channels) * sizeof(element)) / ROWS * ROWS;
    long of_a_thread = ((all_tiles(t) + t->threads - 1) / t->threads + ROWS - 1) / ROWS * ROWS;
    t->block = larger(ROWS, smaller(smaller(fitting, MOST_TILES), of_a_thread));
}

/* That a thread needs for the function that is called next */
long workspace_bytes(const task *t) {
    long panels_of_m = smaller(PANELS_AT_ONCE, panels(t->y.channels));
    long convolution = POINTS * (v_plane(t) * sizeof(element) + panels_of_m * m_plane(t) * sizeof(float));
    long gradient = POINTS * (x_plane(t) + z_plane(t)) * sizeof(word);
    return ((t->sums ? gradient : convolution) + 63) / 64 * 64;
}

/* y from x, weight and bias */
void convolve(task *t) { t->parallel(convolve_as_thread, t, t->threads); }

/* The gradients of a layer: weight and bias of `of_weights` from x and y, which is one, and, unless NULL, y of `of_images`,
 * whose x is that gradient. Which thread does which part changes no result. */
void gradients(task *of_weights, task *of_images) {
    both t = {of_weights, of_images};
    of_weights->parallel(gradients_as_thread, &t, of_weights->threads);
    if (of_weights->bias) finish_bias(of_weights);
}
