/* 3x3 convolutions, stride 1, with or without rows and columns of zeros around, by Winograd's F(2x2, 3x3): 16
 * multiplications for the four outputs of a tile in place of 36 (Lavin and Gray, "Fast Algorithms for Convolutional
 * Neural Networks", CVPR 2016, section 4.1). Pictures are (N, H, W, C) with C a multiple of 8. A block of tiles is
 * transformed, multiplied and transformed back before the next one, so that what is between stays in a core's cache.
 *
 * A tile of outputs is also what 2x2 max-pooling takes the largest of: with pooling, that is all that is written, and
 * which of the four it was (0 to 3). The gradient then comes in the same form, and is spread when it is read.
 *
 * Compiled once for each kind of processor: LANES floats in a vector (8: AVX2, 16: AVX-512), BF16 (1: bfloat16
 * pictures, whose products are summed in float32; 0: float32). A word is 32 bits of a depth that is summed over: a
 * float, or two bfloat16. Weights come in panels, see PANEL.
 */
#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define POINTS 16         /* of the transformed tile: 4x4 */
#define PAIR (LANES / 8)  /* tiles transformed at once, 8 channels of each */
#define PANEL (2 * LANES) /* columns that one product computes: words are [point][depth][PANEL] within a panel */
#define ROWS (LANES == 16 ? 12 : 6) /* tiles that one product computes: as many sums as fit the registers */
#define GROUP 8                     /* input channels that one product of the weights' gradient computes */
#define BLOCK 48                    /* tiles: whole ROWS, transformed inputs of 256 channels in half of a 1 MB cache */
#define GRADIENT_BLOCK 64           /* tiles summed over before the sums are written */
#define MOST_CHANNELS 2048
#define SPREAD 64 /* bytes between the planes of two points: without, all fall into the same sets of the cache */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t signs __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef int8_t signed_bytes __attribute__((vector_size(LANES)));

#if BF16
typedef uint16_t element;
typedef uint32_t word;
typedef uint16_t elements __attribute__((vector_size(2 * LANES)));
#else
typedef float element;
typedef float word;
typedef vector elements;
#endif
#define PER_WORD (int)(sizeof(word) / sizeof(element))

typedef struct {
    const element *values;  /* (n, h, w, channels), or pooled: (n, h / 2, w / 2, channels) */
    const uint8_t *largest; /* of pooled: which of its four pixels each value belongs to; else NULL */
    long h, w, channels;
} source;

typedef struct {
    source x, dy;
    const word *u;     /* transformed weights: [panel][point][channel][PANEL] */
    const float *bias; /* whole panels, or NULL */
    element *y;        /* (n, h, w, co), or pooled: (n, h / 2, w / 2, co) */
    uint8_t *largest;  /* of pooled y; else NULL */
    float *du;         /* [part][point][panel][channel / GROUP][GROUP][PANEL] */
    long n, h, w, co, padding, tile_rows, tile_columns, parts;
    atomic_long taken; /* blocks, or parts */
} task;

typedef struct {
    long image, y, x; /* of the upper left output */
} place;

INLINE long all_tiles(const task *t) { return t->n * t->tile_rows * t->tile_columns; }
INLINE long panels(long channels) { return (channels + PANEL - 1) / PANEL; }
INLINE long smaller(long a, long b) { return a < b ? a : b; }

INLINE place place_of(const task *t, long tile) {
    long row = tile / t->tile_columns;
    return (place){row / t->tile_rows, row % t->tile_rows * 2, tile % t->tile_columns * 2};
}

/* ---- memory and vectors ---- */

INLINE vector load(const void *p) {
    vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE elements narrow(vector v) { /* to the pictures' type, to the nearest */
#if BF16
    return (elements)_mm512_cvtneps_pbh((__m512)v);
#else
    return v;
#endif
}

INLINE vector chosen(bits mask, vector v, vector otherwise) {
    return (vector)(((bits)v & mask) | ((bits)otherwise & ~mask));
}

INLINE vector splat(word w) {
#if BF16
    return (vector)_mm512_set1_epi32((int)w);
#else
    return w - (vector){0};
#endif
}

INLINE vector multiply_add(vector a, vector b, vector sum) {
#if BF16
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif LANES == 16
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#endif
}

/* ---- transforms: the matrices are those of the paper's F(2x2, 3x3) ---- */

typedef struct {
    const element *values[POINTS];
    const uint8_t *largest[POINTS];
} patch; /* where the pixels of a square begin */

/* The square of side x side pixels from (y, x) on; zeros outside of the picture, and without `inside`. */
INLINE patch patch_at(const source *from, int pooled, int inside, long image, long y, long x, int side) {
    static const element zeros[MOST_CHANNELS];
    static const uint8_t none[MOST_CHANNELS];
    patch square;
    UNROLL for (int i = 0; i < side * side; i++) {
        long row = y + i / side, column = x + i % side, h = from->h, w = from->w;
        int there = inside && row >= 0 && column >= 0;
        if (pooled) row >>= 1, column >>= 1, h >>= 1, w >>= 1;
        long pixel = ((image * h + row) * w + column) * from->channels;
        there = there && row < h && column < w;
        square.values[i] = there ? from->values + pixel : zeros;
        if (pooled) square.largest[i] = there ? from->largest + pixel : none;
    }
    return square;
}

/* 8 channels of pixel i in each of PAIR squares; of pooled, where the largest of four was that of number `which` */
INLINE vector load_pair(const patch *squares, int pooled, int i, uint8_t which, long c) {
    elements e;
    for (int k = 0; k < PAIR; k++) memcpy((element *)&e + 8 * k, squares[k].values[i] + c, 8 * sizeof(element));
#if BF16
    bits v = __builtin_convertvector(e, bits) << 16;
#else
    bits v = (bits)e;
#endif
    if (pooled) {
        bytes largest;
        for (int k = 0; k < PAIR; k++) memcpy((uint8_t *)&largest + 8 * k, squares[k].largest[i] + c, 8);
        v &= (bits)__builtin_convertvector((signed_bytes)(largest == which), signs);
    }
    return (vector)v;
}

/* B^T d B, of 8 channels of PAIR tiles, which begin `padding` rows and columns before an even one */
INLINE void transform_input(const patch tiles[PAIR], int pooled, long padding, long c, vector v[POINTS]) {
    vector d[POINTS], r[POINTS];
    UNROLL for (int i = 0; i < POINTS; i++)
        d[i] = load_pair(tiles, pooled, i, (i / 4 + padding) % 2 * 2 + (i + padding) % 2, c);
    UNROLL for (int j = 0; j < 4; j++) {
        r[j] = d[j] - d[8 + j];
        r[4 + j] = d[4 + j] + d[8 + j];
        r[8 + j] = d[8 + j] - d[4 + j];
        r[12 + j] = d[4 + j] - d[12 + j];
    }
    UNROLL for (int i = 0; i < POINTS; i += 4) {
        v[i] = r[i] - r[i + 2];
        v[i + 1] = r[i + 1] + r[i + 2];
        v[i + 2] = r[i + 2] - r[i + 1];
        v[i + 3] = r[i + 1] - r[i + 3];
    }
}

/* A dY A^T, of 8 channels of PAIR tiles */
INLINE void transform_gradient(const patch tiles[PAIR], int pooled, long c, vector z[POINTS]) {
    vector d[4], r[8];
    UNROLL for (int i = 0; i < 4; i++) d[i] = load_pair(tiles, pooled, i, i, c);
    UNROLL for (int j = 0; j < 2; j++) {
        r[j] = d[j];
        r[2 + j] = d[j] + d[2 + j];
        r[4 + j] = d[j] - d[2 + j];
        r[6 + j] = -d[2 + j];
    }
    UNROLL for (int i = 0; i < 4; i++) {
        z[4 * i] = r[2 * i];
        z[4 * i + 1] = r[2 * i] + r[2 * i + 1];
        z[4 * i + 2] = r[2 * i] - r[2 * i + 1];
        z[4 * i + 3] = -r[2 * i + 1];
    }
}

/* A^T m A, of LANES columns of one tile; `plane` floats from point to point */
INLINE void transform_output(const float *m, long plane, vector bias, vector y[4]) {
    vector d[POINTS], r[8];
    UNROLL for (int i = 0; i < POINTS; i++) d[i] = load(m + i * plane);
    UNROLL for (int j = 0; j < 4; j++) {
        r[j] = d[j] + d[4 + j] + d[8 + j];
        r[4 + j] = d[4 + j] - d[8 + j] - d[12 + j];
    }
    UNROLL for (int i = 0; i < 2; i++) {
        y[2 * i] = r[4 * i] + r[4 * i + 1] + r[4 * i + 2] + bias;
        y[2 * i + 1] = r[4 * i + 1] - r[4 * i + 2] - r[4 * i + 3] + bias;
    }
}

/* ---- products: c[rows][PANEL] = (or +=) a b, with a's words `row` and `step` apart, b[depth][PANEL] ---- */

#define PRODUCT(NAME, MANY)                                                                                       \
    static void NAME(const word *a, long row, long step, const word *b, float *c, long depth, int add) {         \
        vector sum[MANY][2];                                                                                      \
        UNROLL for (int r = 0; r < MANY; r++) {                                                                   \
            sum[r][0] = add ? load(c + r * PANEL) : (vector){0};                                                  \
            sum[r][1] = add ? load(c + r * PANEL + LANES) : (vector){0};                                          \
        }                                                                                                         \
        for (long k = 0; k < depth; k++) {                                                                        \
            vector b0 = load(b + k * PANEL), b1 = load(b + k * PANEL + LANES);                                    \
            UNROLL for (int r = 0; r < MANY; r++) {                                                               \
                vector w = splat(a[r * row + k * step]);                                                          \
                sum[r][0] = multiply_add(w, b0, sum[r][0]);                                                       \
                sum[r][1] = multiply_add(w, b1, sum[r][1]);                                                       \
            }                                                                                                     \
        }                                                                                                         \
        UNROLL for (int r = 0; r < MANY; r++) memcpy(c + r * PANEL, sum[r], sizeof sum[r]);                       \
    }
PRODUCT(product_of_rows, ROWS)
PRODUCT(product_of_group, GROUP)

/* ---- the convolution ---- */

/* v[point][tile][channel], `plane` elements from point to point */
INLINE void transform_inputs(const task *t, int pooled, long first, long last, element *v, long plane) {
    for (long tile = first; tile < last; tile += PAIR) {
        patch tiles[PAIR];
        for (int k = 0; k < PAIR; k++) {
            place at = place_of(t, tile + k);
            tiles[k] = patch_at(&t->x, pooled, tile + k < last, at.image, at.y - t->padding, at.x - t->padding, 4);
        }
        for (long c = 0; c < t->x.channels; c += 8) {
            vector points[POINTS];
            transform_input(tiles, pooled, t->padding, c, points);
            UNROLL for (int p = 0; p < POINTS; p++) {
                elements e = narrow(points[p]);
                element *to = v + p * plane + (tile - first) * t->x.channels + c;
                for (int k = 0; k < PAIR; k++)
                    memcpy(to + k * t->x.channels, (element *)&e + 8 * k, 8 * sizeof(element));
            }
        }
    }
}

INLINE void write(const task *t, long pixel, long c, vector v) { /* as many channels as there are, 8 or LANES */
    elements e = narrow(v);
    memcpy(t->y + pixel * t->co + c, &e, (t->co - c >= LANES ? LANES : 8) * sizeof(element));
}

INLINE void write_largest(const task *t, long pixel, long c, const vector y[4]) {
    vector largest = y[0];
    bits which = {0};
    UNROLL for (int i = 1; i < 4; i++) {
        bits more = (bits)(y[i] > largest) | (bits)(y[i] != y[i]); /* NaN stays, as in PyTorch */
        largest = chosen(more, y[i], largest);
        which = (which & ~more) | (i & more);
    }
    bytes narrowed = __builtin_convertvector(which, bytes);
    memcpy(t->largest + pixel * t->co + c, &narrowed, t->co - c >= LANES ? LANES : 8);
    write(t, pixel, c, largest);
}

INLINE void write_outputs(const task *t, int pooled, long first, long last, long panel, const float *m, long plane) {
    for (long tile = first; tile < last; tile++) {
        place at = place_of(t, tile);
        for (long column = 0; column < PANEL && panel * PANEL + column < t->co; column += LANES) {
            long c = panel * PANEL + column;
            vector y[4], bias = t->bias ? load(t->bias + c) : (vector){0};
            transform_output(m + (tile - first) * PANEL + column, plane, bias, y);
            if (pooled) {
                write_largest(t, tile, c, y);
                continue;
            }
            for (int i = 0; i < 4; i++)
                if (at.y + i / 2 < t->h && at.x + i % 2 < t->w)
                    write(t, (at.image * t->h + at.y + i / 2) * t->w + at.x + i % 2, c, y[i]);
        }
    }
}

static void convolve_blocks(void *data) {
    task *t = data;
    long ci = t->x.channels, depth = ci / PER_WORD, tiles = all_tiles(t);
    long v_plane = BLOCK * ci + SPREAD / sizeof(element), m_plane = BLOCK * PANEL + SPREAD / sizeof(float);
    element *v = aligned_alloc(64, POINTS * v_plane * sizeof *v);
    float *m = aligned_alloc(64, POINTS * m_plane * sizeof *m);
    memset(v, 0, POINTS * v_plane * sizeof *v); /* rows past the last tile are multiplied too */
    for (long first; (first = BLOCK * atomic_fetch_add(&t->taken, 1)) < tiles;) {
        long last = smaller(first + BLOCK, tiles);
        if (t->x.largest)
            transform_inputs(t, 1, first, last, v, v_plane);
        else
            transform_inputs(t, 0, first, last, v, v_plane);
        for (long panel = 0; panel < panels(t->co); panel++) {
            for (long p = 0; p < POINTS; p++) {
                const word *u = t->u + (panel * POINTS + p) * depth * PANEL;
                for (long row = 0; row < last - first; row += ROWS)
                    product_of_rows((const word *)(v + p * v_plane + row * ci), depth, 1, u,
                                    m + p * m_plane + row * PANEL, depth, 0);
            }
            if (t->largest)
                write_outputs(t, 1, first, last, panel, m, m_plane);
            else
                write_outputs(t, 0, first, last, panel, m, m_plane);
        }
    }
    free(v), free(m);
}

/* ---- the gradient of the weights: what is summed over is the tiles ---- */

/* PAIR tiles of 8 channels, from tile `at` on: words[tile / PER_WORD][stride] */
INLINE void store_tiles(word *words, long stride, long at, vector v) {
    elements e = narrow(v);
#if BF16 /* two tiles are one word */
    const __m256i zip = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    __m256i zipped = _mm256_permutexvar_epi16(zip, (__m256i)e);
    memcpy(words + at / 2 * stride, &zipped, sizeof zipped);
#else
    for (int i = 0; i < PAIR; i++) memcpy(words + (at + i) * stride, (word *)&e + 8 * i, 8 * sizeof(word));
#endif
}

/* v[point][channel / GROUP][tile][GROUP] and z[point][panel][tile][PANEL] of a block's tiles, PER_WORD of them a word */
INLINE void transform_block(const task *t, int pooled, long first, long last, word *v, long v_plane, word *z,
                            long z_plane) {
    long depth = GRADIENT_BLOCK / PER_WORD;
    for (long tile = 0; tile < GRADIENT_BLOCK; tile += PAIR) {
        patch under[PAIR], outputs[PAIR];
        for (int k = 0; k < PAIR; k++) {
            place at = place_of(t, first + tile + k);
            int inside = first + tile + k < last;
            under[k] = patch_at(&t->x, 0, inside, at.image, at.y - t->padding, at.x - t->padding, 4);
            outputs[k] = patch_at(&t->dy, pooled, inside, at.image, at.y, at.x, 2);
        }
        vector points[POINTS];
        for (long c = 0; c < t->x.channels; c += 8) {
            transform_input(under, 0, t->padding, c, points);
            UNROLL for (int p = 0; p < POINTS; p++) store_tiles(v + p * v_plane + c * depth, GROUP, tile, points[p]);
        }
        for (long c = 0; c < t->co; c += 8) {
            word *column = z + c / PANEL * PANEL * depth + c % PANEL;
            transform_gradient(outputs, pooled, c, points);
            UNROLL for (int p = 0; p < POINTS; p++) store_tiles(column + p * z_plane, PANEL, tile, points[p]);
        }
    }
}

static void sum_gradients(void *data) {
    task *t = data;
    long ci = t->x.channels, wide = panels(t->co) * PANEL, depth = GRADIENT_BLOCK / PER_WORD, tiles = all_tiles(t);
    long v_plane = depth * ci + SPREAD / sizeof(word), z_plane = depth * wide + SPREAD / sizeof(word);
    word *v = aligned_alloc(64, POINTS * v_plane * sizeof *v), *z = aligned_alloc(64, POINTS * z_plane * sizeof *z);
    memset(z, 0, POINTS * z_plane * sizeof *z); /* columns past the last channel are multiplied too */
    for (long part; (part = atomic_fetch_add(&t->taken, 1)) < t->parts;) {
        float *du = t->du + part * POINTS * ci * wide;
        memset(du, 0, POINTS * ci * wide * sizeof *du);
        long last = tiles * (part + 1) / t->parts;
        for (long first = tiles * part / t->parts; first < last; first += GRADIENT_BLOCK) {
            if (t->dy.largest)
                transform_block(t, 1, first, last, v, v_plane, z, z_plane);
            else
                transform_block(t, 0, first, last, v, v_plane, z, z_plane);
            for (long p = 0; p < POINTS; p++)
                for (long column = 0; column < wide; column += PANEL)
                    for (long c = 0; c < ci; c += GROUP)
                        product_of_group(v + p * v_plane + c * depth, 1, GROUP, z + p * z_plane + column * depth,
                                         du + (p * wide + column) * ci + c * PANEL, depth, 1);
        }
    }
    free(v), free(z);
}

/* ---- what is called: x is (n, h, w, ci) before pooling, with `padding` rows and columns of zeros on each side ---- */

typedef void parallel_region(void (*)(void *), void *, unsigned threads, unsigned flags); /* libgomp's GOMP_parallel */

INLINE task task_of(source x, long n, long co, long padding, int pooled) {
    long h = x.h + 2 * padding - 2, w = x.w + 2 * padding - 2;
    task t = {.x = x, .n = n, .h = h, .w = w, .co = co, .padding = padding};
    t.tile_rows = (h + !pooled) / 2, t.tile_columns = (w + !pooled) / 2;
    return t;
}

/* `x_largest` where x is pooled, `y_largest` where y shall be */
void convolve(parallel_region *parallel, unsigned threads, const element *x, const uint8_t *x_largest, const word *u,
              const float *bias, element *y, uint8_t *y_largest, long n, long h, long w, long ci, long co,
              long padding) {
    task t = task_of((source){x, x_largest, h, w, ci}, n, co, padding, y_largest != NULL);
    t.u = u, t.bias = bias, t.y = y, t.largest = y_largest;
    parallel(convolve_blocks, &t, threads, 0);
}

/* `largest` where dy is pooled. `du` has parts that are to be summed: which thread does which changes no result. */
void weight_gradient(parallel_region *parallel, unsigned threads, const element *x, const element *dy,
                     const uint8_t *largest, float *du, long parts, long n, long h, long w, long ci, long co,
                     long padding) {
    task t = task_of((source){x, NULL, h, w, ci}, n, co, padding, largest != NULL);
    t.dy = (source){dy, largest, t.h, t.w, co}, t.du = du, t.parts = parts;
    parallel(sum_gradients, &t, threads, 0);
}
