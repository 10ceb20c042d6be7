/* Dropout and ELU, and their gradients, of float32 values wherever they lie: in the order of memory. */
#include "kernels.h"
#include <math.h>

#define CHUNK 4096 /* values that a thread takes at once */
#define DRAWS 4    /* values that one random word decides: 16 bits each */
#define EACH_FOR_ITSELF _Pragma("clang loop vectorize(assume_safety)") /* where `to` is `from`, too */

typedef struct {
    parallel_region *parallel;
    long threads, count;
    const float *from, *outputs; /* `outputs` of ELU, for its gradient */
    float *to;
    uint64_t seed;   /* of dropout */
    unsigned dropped; /* of 65,536 */
    atomic_long taken;
} task;

static void drop_chunks(void *data) {
    task *t = data;
    float scale = 65536.0f / (65536 - t->dropped);
    for (long first; (first = CHUNK * atomic_fetch_add(&t->taken, 1)) < t->count;) {
        uint64_t words[CHUNK / DRAWS];
        uint16_t draws[CHUNK];
        for (long i = 0; i < CHUNK / DRAWS; i += LANES / 2) {
            longs places;
            for (int k = 0; k < LANES / 2; k++) places[k] = first / DRAWS + i + k;
            longs drawn = random_words(t->seed, places);
            memcpy(words + i, &drawn, sizeof drawn);
        }
        memcpy(draws, words, sizeof draws);
        const float *from = t->from + first;
        float *to = t->to + first;
        long count = smaller(CHUNK, t->count - first);
        EACH_FOR_ITSELF for (long i = 0; i < count; i++) to[i] = draws[i] >= t->dropped ? from[i] * scale : 0.0f;
    }
}

/* e^x - 1 for x <= 0, to 2 units in the last place: 2^n (e^r - 1) + (2^n - 1), with |r| at most ln(2) / 2 */
INLINE float less_than_exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln(2) in two parts (Cody and Waite) */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r;
    int32_t power = ((int32_t)n + 127) << 23;
    float two_to_n;
    memcpy(&two_to_n, &power, sizeof power);
    return two_to_n * p + (two_to_n - 1.0f);
}

static void elu_chunks(void *data) {
    task *t = data;
    for (long first; (first = CHUNK * atomic_fetch_add(&t->taken, 1)) < t->count;) {
        long last = smaller(first + CHUNK, t->count);
        EACH_FOR_ITSELF for (long i = first; i < last; i++) {
            float x = t->from[i];
            t->to[i] = x <= 0.0f ? less_than_exponential(x) : x; /* NaN stays */
        }
    }
}

static void elu_gradient_chunks(void *data) {
    task *t = data;
    for (long first; (first = CHUNK * atomic_fetch_add(&t->taken, 1)) < t->count;) {
        long last = smaller(first + CHUNK, t->count);
        EACH_FOR_ITSELF for (long i = first; i < last; i++) {
            float y = t->outputs[i];
            t->to[i] = t->from[i] * (y <= 0.0f ? y + 1.0f : 1.0f);
        }
    }
}

static void run(task *t, void (*work)(void *)) {
    atomic_store(&t->taken, 0);
    run_on_values(t->parallel, work, t, t->threads, t->count);
}

/* `to` from `from`, of values and of gradients alike */
void dropout(task *t) { run(t, drop_chunks); }

void elu(task *t) { run(t, elu_chunks); }

/* `to` from `from`, which is the gradient of `outputs` */
void elu_gradient(task *t) { run(t, elu_gradient_chunks); }
