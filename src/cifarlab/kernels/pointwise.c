/* Dropout and ELU, and their gradients, of float32 values wherever they lie: in the order of memory. */
#include "kernels.h"

#define CHUNK 4096 /* values that a thread takes at once */

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
    float scale = scale_of_kept(t->dropped);
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

static void elu_chunks(void *data) {
    task *t = data;
    for (long first; (first = CHUNK * atomic_fetch_add(&t->taken, 1)) < t->count;) {
        long last = smaller(first + CHUNK, t->count);
        for (long i = first; i < last; i += LANES)
            store_first(t->to + i, elu_of(load_first(t->from + i, last - i)), last - i);
    }
}

static void elu_gradient_chunks(void *data) {
    task *t = data;
    for (long first; (first = CHUNK * atomic_fetch_add(&t->taken, 1)) < t->count;) {
        long last = smaller(first + CHUNK, t->count);
        for (long i = first; i < last; i += LANES) {
            vector slope = elu_slope(load_first(t->outputs + i, last - i));
            store_first(t->to + i, load_first(t->from + i, last - i) * slope, last - i);
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
