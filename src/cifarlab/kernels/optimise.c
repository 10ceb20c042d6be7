/* A step of SGD, RMSprop, Adam or AdamW on all float32 weights of a network, wherever they lie: in the order of memory.
 * The rules are those of PyTorch's optimisers, and NaN and infinity do what they do there. */
#include "kernels.h"
#include <math.h>

#define CHUNK 32768 /* weights that a thread takes at once: in smaller ones, it waits for memory more often */

typedef struct {
    float *weight, *mean, *square; /* means of gradients and of their squares; NULL if the rule has none */
    float *steps;                  /* how many there were; NULL if the rule does not count them */
    long count, group;
} weights;

/* `keep`: how much of a mean stays; `variant`: Nesterov's SGD, decay apart from the gradient in Adam, epsilon inside the
 * root in RMSprop */
typedef struct {
    double rate, decay, keep_mean, keep_square, epsilon, variant;
} group;

typedef struct {
    parallel_region *parallel;
    long threads, tensors;
    const weights *tensor;
    const float **gradient; /* of each; NULL: it stays as it is */
    const group *group;
    atomic_long taken;
    void (*rule)(const weights *, const group *, const float *gradient, long first, long last);
} task;

/* Without decay, an infinite weight must not make the gradient NaN. */
INLINE float decayed(float gradient, float weight, float decay) {
    return decay != 0.0f ? gradient + decay * weight : gradient;
}

static void sgd_chunk(const weights *t, const group *g, const float *gradient, long first, long last) {
    float *weight = t->weight, *mean = t->mean, rate = g->rate, decay = g->decay, keep = g->keep_mean;
    int nesterov = g->variant != 0.0;
    if (mean == NULL) {
        EACH_FOR_ITSELF for (long i = first; i < last; i++)
            weight[i] -= rate * decayed(gradient[i], weight[i], decay);
        return;
    }
    EACH_FOR_ITSELF for (long i = first; i < last; i++) {
        float d = decayed(gradient[i], weight[i], decay);
        float m = keep * mean[i] + d;
        mean[i] = m;
        weight[i] -= rate * (nesterov ? d + keep * m : m);
    }
}

static void rmsprop_chunk(const weights *t, const group *g, const float *gradient, long first, long last) {
    float *weight = t->weight, *square = t->square, rate = g->rate, decay = g->decay;
    float keep = g->keep_square, new = 1.0 - g->keep_square;
    float inside = g->variant != 0.0 ? g->epsilon : 0.0, outside = g->variant != 0.0 ? 0.0 : g->epsilon;
    EACH_FOR_ITSELF for (long i = first; i < last; i++) {
        float d = decayed(gradient[i], weight[i], decay);
        float s = keep * square[i] + new * d * d;
        square[i] = s;
        weight[i] -= rate * d / (sqrtf(s + inside) + outside);
    }
}

/* 1 - keep^steps: the share of a mean that is not from its start at 0 */
static double share(double keep, long steps) {
    double power = 1.0;
    for (; steps > 0; steps >>= 1, keep *= keep)
        if (steps & 1) power *= keep;
    return 1.0 - power;
}

static void adam_chunk(const weights *t, const group *g, const float *gradient, long first, long last) {
    float *weight = t->weight, *mean = t->mean, *square = t->square;
    int apart = g->variant != 0.0;
    float decay = apart ? 0.0 : g->decay, shrink = apart ? 1.0 - g->rate * g->decay : 1.0;
    float keep = g->keep_square, new = 1.0 - g->keep_square, epsilon = g->epsilon;
    float rate = g->rate / share(g->keep_mean, (long)*t->steps);
    float correction = 1.0 / sqrt(share(g->keep_square, (long)*t->steps));
    float new_mean = 1.0 - g->keep_mean;
    EACH_FOR_ITSELF for (long i = first; i < last; i++) {
        float w = weight[i] * shrink;
        float d = decayed(gradient[i], w, decay);
        float m = mean[i] + new_mean * (d - mean[i]);
        float s = keep * square[i] + new * d * d;
        mean[i] = m;
        square[i] = s;
        weight[i] = w - rate * m / (sqrtf(s) * correction + epsilon);
    }
}

INLINE long chunks(const task *t, long i) {
    return t->gradient[i] == NULL ? 0 : (t->tensor[i].count + CHUNK - 1) / CHUNK;
}

static void take_chunks(void *data) {
    task *t = data;
    long i = 0, begin = 0; /* `begin`: chunks of the tensors before i */
    for (;;) {
        long chunk = atomic_fetch_add(&t->taken, 1);
        for (; i < t->tensors && chunk >= begin + chunks(t, i); i++) begin += chunks(t, i);
        if (i == t->tensors) return;
        const weights *w = &t->tensor[i];
        long first = CHUNK * (chunk - begin), last = smaller(first + CHUNK, w->count);
        t->rule(w, &t->group[w->group], t->gradient[i], first, last);
    }
}

static void run(task *t, void (*rule)(const weights *, const group *, const float *, long, long)) {
    long parts = 0;
    for (long i = 0; i < t->tensors; i++) {
        parts += chunks(t, i);
        if (t->gradient[i] != NULL && t->tensor[i].steps != NULL) *t->tensor[i].steps += 1.0f;
    }
    t->rule = rule;
    atomic_store(&t->taken, 0);
    t->parallel(take_chunks, t, smaller(t->threads, larger(parts, 1)));
}

void sgd(task *t) { run(t, sgd_chunk); }

void rmsprop(task *t) { run(t, rmsprop_chunk); }

void adam(task *t) { run(t, adam_chunk); }
