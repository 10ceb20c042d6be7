/* What the kernels share: vectors of LANES floats (8: AVX2, 16: AVX-512), work in phases, and the product of winograd.c.
 * BF16 is 1 where pictures are bfloat16, whose products are summed in float32. A word is 32 bits of a depth that is summed
 * over: a float, or two bfloat16.
 */
#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define FEW (1 << 17) /* values, for which waking another thread takes longer than its half of them: libgomp, 40 to 60 us */
#define DRAWS 4       /* values that one random word decides to drop or not: 16 bits each */
#define PANEL (2 * LANES) /* columns that one product computes */
#define ROWS (LANES == 16 ? 12 : 6) /* rows that one product computes: as many sums as fit the registers */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")
#define EACH_FOR_ITSELF _Pragma("clang loop vectorize(assume_safety)") /* where what is written may be what is read */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t signs __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef int8_t signed_bytes __attribute__((vector_size(LANES)));
typedef uint64_t longs __attribute__((vector_size(4 * LANES)));

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

typedef void parallel_region(void (*)(void *), void *, unsigned threads); /* team_parallel */

/* Work of many parts, which threads take one after the other; 0 to begin with */
typedef struct {
    atomic_long taken, done;
} phase;

INLINE long take(phase *p) { return atomic_fetch_add(&p->taken, 1); }

/* To be called once for each part taken */
INLINE void done(phase *p) { atomic_fetch_add(&p->done, 1); }

/* Until all parts are done, by whichever threads there are */
INLINE void wait_for(phase *p, long parts) {
    for (long spins = 0; atomic_load(&p->done) < parts; spins++)
        if (spins < 1000)
            _mm_pause();
        else
            sched_yield(); /* where other programs want the cores, too */
}

/* `work` on so many values, each of little work: by this thread alone if FEW */
INLINE void run_on_values(parallel_region *parallel, void (*work)(void *), void *task, long threads, long values) {
    if (threads > 1 && values > FEW)
        parallel(work, task, threads);
    else
        work(task);
}

INLINE long panels(long channels) { return (channels + PANEL - 1) / PANEL; }
INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }

INLINE vector load(const void *p) {
    vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Of the pictures' type */
INLINE vector load_elements(const element *from) {
#if BF16
    elements e;
    memcpy(&e, from, sizeof e);
    return (vector)(__builtin_convertvector(e, bits) << 16);
#else
    return load(from);
#endif
}

/* The first `count` of a vector, then zeros */
INLINE vector load_first(const float *from, long count) {
    vector v = {0};
    if (count >= LANES) return load(from);
    memcpy(&v, from, larger(count, 0) * sizeof *from);
    return v;
}

INLINE void store_first(float *to, vector v, long count) {
    if (count >= LANES)
        memcpy(to, &v, sizeof v);
    else
        memcpy(to, &v, count * sizeof *to);
}

INLINE elements narrow(vector v) { /* to the pictures' type, to the nearest */
#if BF16
    return (elements)_mm512_cvtneps_pbh((__m512)v);
#else
    return v;
#endif
}

INLINE void store_elements(element *to, vector v) {
    elements e = narrow(v);
    memcpy(to, &e, sizeof e);
}

INLINE vector chosen(bits mask, vector v, vector otherwise) {
    return (vector)(((bits)v & mask) | ((bits)otherwise & ~mask));
}

/* Of four, and which it is: the first of equal ones. NaN stays, as in PyTorch. */
INLINE vector largest_of_four(const vector y[4], bits *which) {
    vector largest = y[0];
    *which = (bits){0};
    UNROLL for (int i = 1; i < 4; i++) {
        bits more = (bits)(y[i] > largest) | (bits)(y[i] != y[i]);
        largest = chosen(more, y[i], largest);
        *which = (*which & ~more) | (i & more);
    }
    return largest;
}

/* e^x - 1 for x <= 0, to 1 unit in the last place: 2^n (e^r - 1) + (2^n - 1), with |r| at most ln(2) / 2. What n ln(2)
 * loses in r is small beside 2^n - 1. e^r - 1 - r is r^2 times a minimax polynomial, to 2e-8 of e^r - 1. */
INLINE vector less_than_exponential(vector x) {
    const vector one = (vector){0} + 1.0f, least = (vector){0} - 87.0f;
    const vector rounding = (vector){0} + (12582912.0f + 127.0f); /* a sum with it ends in the bits of n + 127 */
    x = chosen((bits)(x < least), least, x);
    vector sum = x * 1.44269504f + rounding, n = sum - rounding, r = x - n * 0.693147181f;
    vector p = r * 0.00139465544f + 0.00836664438f;
    p = p * r + 0.0416662805f;
    p = p * r + 0.166665420f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    vector power = (vector)((bits)sum << 23); /* 2^n */
    return power * p + (power - one);
}

INLINE vector elu_of(vector x) { return chosen((bits)(x <= 0.0f), less_than_exponential(x), x); /* NaN stays */ }

/* The derivative of ELU, from what it gave */
INLINE vector elu_slope(vector y) { return chosen((bits)(y <= 0.0f), y + 1.0f, (vector){0} + 1.0f); }

/* The probability that a standard normal variable is below x, to 1e-7 (M. Abramowitz and I. Stegun, "Handbook of
 * Mathematical Functions", 1964, 7.1.26), and its density there */
INLINE vector normal_below(vector x, vector *density) {
    vector exponential = less_than_exponential(-0.5f * x * x) + 1.0f;
    vector t = 1.0f / ((vector)((bits)x & 0x7FFFFFFF) * 0.231641888f + 1.0f);
    vector p = t * 0.530702715f - 0.726576014f;
    p = p * t + 0.710706871f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    vector beyond = p * t * exponential; /* |x|, on its side of 0 */
    *density = exponential * 0.398942280f;
    return chosen((bits)(x < 0.0f), beyond, 1.0f - beyond);
}

INLINE vector gelu_of(vector x) {
    vector density;
    return x * normal_below(x, &density);
}

/* The derivative of GELU at x */
INLINE vector gelu_slope(vector x) {
    vector density, below = normal_below(x, &density);
    return below + x * density;
}

/* From the first value of a 2x2 square in (H, W, C) to that of its pixel `i` */
INLINE long in_square(long w, long channels, int i) { return (i / 2 * w + i % 2) * channels; }

/* All bits of those whose mark is `i` */
INLINE bits mark_is(const uint8_t *marks, uint8_t i) {
    bytes found;
    memcpy(&found, marks, sizeof found);
    return (bits)__builtin_convertvector((signed_bytes)(found == i), signs);
}

/* The words of a stream at these places: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
 * generators", 2014), which is a function of the place in the stream, so that any thread can draw any part. */
INLINE longs random_words(uint64_t seed, longs places) {
    longs z = seed + (places + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Of the values that are kept, `dropped` in 65,536 are not */
INLINE float scale_of_kept(unsigned dropped) { return 65536.0f / (65536 - dropped); }

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

/* c[MANY][WIDE vectors] = (or +=) a b: words of a are `row` and `step` apart, rows of b and c `b_row` and `c_row` */
#define PRODUCT(NAME, MANY, WIDE)                                                                                     \
    static void NAME(const word *a, long row, long step, const word *b, long b_row, float *c, long c_row,         \
                     long depth, int add) {                                                                       \
        vector sum[MANY][WIDE];                                                                                   \
        UNROLL for (int r = 0; r < MANY; r++)                                                                     \
            UNROLL for (int i = 0; i < WIDE; i++) sum[r][i] = add ? load(c + r * c_row + i * LANES) : (vector){0}; \
        for (long k = 0; k < depth; k++)                                                                          \
            UNROLL for (int r = 0; r < MANY; r++) {                                                               \
                vector w = splat(a[r * row + k * step]);                                                          \
                UNROLL for (int i = 0; i < WIDE; i++)                                                             \
                    sum[r][i] = multiply_add(w, load(b + k * b_row + i * LANES), sum[r][i]);                      \
            }                                                                                                     \
        UNROLL for (int r = 0; r < MANY; r++) memcpy(c + r * c_row, sum[r], sizeof sum[r]);                       \
    }
