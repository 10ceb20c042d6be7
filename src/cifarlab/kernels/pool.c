/* Dropout, and then 2x2 max-pooling, of float32 (N, H, W, C), C a multiple of LANES, and their gradient. The largest of
 * four is all that is written, with a byte that says which of them it was (0 to 3), and whether it was DROPPED. What is
 * dropped is what pointwise.c drops of these values. An odd last row or column is left out.
 */
#include "kernels.h"

#define VALUES 8192 /* of x that a thread takes at once, or a row of squares */
#define DROPPED 4   /* or-ed to the others */

typedef uint16_t draws_of_two __attribute__((vector_size(4 * LANES)));
typedef int16_t of_two __attribute__((vector_size(4 * LANES)));
typedef int16_t of_one __attribute__((vector_size(2 * LANES)));

typedef struct {
    parallel_region *parallel;
    long threads, n, h, w, channels;
    float *x;         /* or its gradient */
    float *y;         /* (n, h / 2, w / 2, channels), or its gradient */
    uint8_t *marks;   /* of y */
    uint64_t seed;
    unsigned dropped; /* of 65,536; 0: the pool alone */
    atomic_long taken;
} task;

INLINE long all_rows(const task *t) { return t->n * (t->h / 2); } /* of squares */
INLINE long rows_at_once(const task *t) { return larger(1, VALUES / (2 * t->w * t->channels)); }

/* Where the row of squares begins in x */
INLINE long place_of(const task *t, long row) {
    long image = row / (t->h / 2), y = row % (t->h / 2) * 2;
    return (image * t->h + y) * t->w * t->channels;
}

/* Places of the random words of a vector and of its right neighbour, from the first one on */
INLINE longs places_of_two(const task *t) {
    longs places;
    for (int i = 0; i < LANES / 2; i++)
        places[i] = i % (LANES / DRAWS) + (i < LANES / DRAWS ? 0 : t->channels / DRAWS);
    return places;
}

/* To zero or by `scale`; `kept` has all bits of those that are not dropped */
INLINE void drop_two(const task *t, longs places, float scale, vector x[2], bits kept[2]) {
    of_two more = (of_two)((draws_of_two)random_words(t->seed, places) > (uint16_t)(t->dropped - 1));
    UNROLL for (int i = 0; i < 2; i++) {
        of_one each;
        memcpy(&each, (int16_t *)&more + i * LANES, sizeof each);
        kept[i] = (bits)__builtin_convertvector(each, signs);
        x[i] = (vector)((bits)(x[i] * scale) & kept[i]);
    }
}

/* LANES channels of a square, from `at` in x, which go to `to` in y */
INLINE void pool_square(const task *t, int dropping, longs places, float scale, long at, long to) {
    vector x[4];
    bits kept[4], which;
    UNROLL for (int i = 0; i < 4; i++) x[i] = load(t->x + at + in_square(t->w, t->channels, i));
    if (dropping)
        UNROLL for (int i = 0; i < 4; i += 2)
            drop_two(t, places + (uint64_t)((at + in_square(t->w, t->channels, i)) / DRAWS), scale, x + i, kept + i);
    vector largest = largest_of_four(x, &which);
    if (dropping)
        UNROLL for (int i = 0; i < 4; i++) which |= (bits)(which == (uint32_t)i) & ~kept[i] & DROPPED;
    bytes marks = __builtin_convertvector(which, bytes);
    memcpy(t->y + to, &largest, sizeof largest);
    memcpy(t->marks + to, &marks, sizeof marks);
}

INLINE void pool_row(const task *t, int dropping, long row) {
    float scale = scale_of_kept(t->dropped);
    longs places = places_of_two(t);
    long at = place_of(t, row), to = row * (t->w / 2) * t->channels;
    for (long x = 0; x < t->w / 2; x++, at += 2 * t->channels, to += t->channels)
        for (long c = 0; c < t->channels; c += LANES) pool_square(t, dropping, places, scale, at + c, to + c);
}

static void pool_rows(void *data) {
    task *t = data;
    long each = rows_at_once(t);
    for (long first; (first = each * atomic_fetch_add(&t->taken, 1)) < all_rows(t);)
        for (long row = first; row < smaller(first + each, all_rows(t)); row++)
            if (t->dropped)
                pool_row(t, 1, row);
            else
                pool_row(t, 0, row);
}

/* Of what no square has: the last column of a row of squares, or the row under it */
INLINE void clear(const task *t, long row) {
    float *x = t->x + place_of(t, row);
    long line = t->w * t->channels;
    if (t->w % 2)
        for (int i = 1; i <= 2; i++) memset(x + i * line - t->channels, 0, t->channels * sizeof *x);
    if (t->h % 2 && (row + 1) % (t->h / 2) == 0) memset(x + 2 * line, 0, line * sizeof *x);
}

INLINE void gradient_of_row(const task *t, long row) {
    float scale = scale_of_kept(t->dropped);
    long at = place_of(t, row), from = row * (t->w / 2) * t->channels;
    for (long x = 0; x < t->w / 2; x++, at += 2 * t->channels, from += t->channels)
        for (long c = 0; c < t->channels; c += LANES) {
            vector dy = load(t->y + from + c) * scale;
            UNROLL for (int i = 0; i < 4; i++) {
                bits dx = (bits)dy & mark_is(t->marks + from + c, i);
                memcpy(t->x + at + in_square(t->w, t->channels, i) + c, &dx, sizeof dx);
            }
        }
}

static void gradient_of_rows(void *data) {
    task *t = data;
    long each = rows_at_once(t);
    for (long first; (first = each * atomic_fetch_add(&t->taken, 1)) < all_rows(t);)
        for (long row = first; row < smaller(first + each, all_rows(t)); row++) {
            gradient_of_row(t, row);
            clear(t, row);
        }
}

static void run(task *t, void (*work)(void *)) {
    atomic_store(&t->taken, 0);
    run_on_values(t->parallel, work, t, t->threads, t->n * t->h * t->w * t->channels);
}

/* y and marks from x */
void pool(task *t) { run(t, pool_rows); }

/* x from y and marks, both gradients */
void pool_gradient(task *t) { run(t, gradient_of_rows); }
