/* Dense layers of small batches: y = relu(x w^T + bias), and the gradients. All is float32, in rows: x (batch, inputs),
 * weight (outputs, inputs), y (batch, outputs). The weights, which are by far the most, are used as they lie, and each
 * is fetched from memory once; what is small is packed.
 *
 * A product computes up to MOST_ROWS x PANEL sums in registers. Rows of a matrix are often a multiple of 4,096 bytes
 * apart, and then all fall into the same few lines of a core's first cache: so a product copies those that it goes
 * through to where they lie close together, while it multiplies.
 */
#include "kernels.h"

#define MOST_ROWS (LANES == 16 ? 14 : 6) /* of a product: as many sums as fit the registers */
#define MOST_BATCH 256
#define BLOCK 64          /* outputs that a thread computes together */
#define FEW_OUTPUTS 256   /* see `by_panels` */
#define INPUTS_CHUNK 512  /* summed over for a block of outputs, before the next ones: what is packed of x stays near */
#define OUTPUTS_CHUNK 128 /* summed over for the inputs' gradient, before the next ones */
#define COLUMNS 512       /* inputs whose gradient a thread computes together, at most */
#define STRETCH 256       /* columns that a thread packs together */
#define LINE 16           /* floats that are fetched together */
#define AHEAD 128         /* floats before they are needed, weights are fetched */

/* A call, as cifarlab.kernels.dense_layer makes it. Gradients that are not wanted are NULL. */
typedef struct {
    parallel_region *parallel;
    long threads, batch, inputs, outputs, relu;
    const float *x, *weight, *bias; /* bias may be NULL */
    float *y;
    const float *y_gradient;
    float *x_gradient, *weight_gradient, *bias_gradient;
    float *packed;    /* `packed_floats` */
    float *workspace; /* `workspace_floats` of each thread */
    long past_caches; /* the weights' gradient is written straight to memory */
    atomic_long entered; /* threads */
    phase packing, computing;
} task;

INLINE long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

/* ---- products: c[many][PANEL] (or +=) a b ---- */

/* Element (r, k) of a is at r + k * step. A product that keeps its b copies the rows to `kept`. A line is fetched of each
 * row from `soon` on, which the next products need. */
typedef struct {
    const float *a;
    long step;
    const float *b;
    long b_row;
    float *kept;
    const float *soon;
    long soon_row;
    float *c;
    long c_row, depth;
    int add, past_caches;
} product;

INLINE void store_sums(float *c, const vector sum[2], int past_caches) {
    if (past_caches) {
#if LANES == 16
        _mm512_stream_ps(c, (__m512)sum[0]), _mm512_stream_ps(c + LANES, (__m512)sum[1]);
#else
        _mm256_stream_ps(c, (__m256)sum[0]), _mm256_stream_ps(c + LANES, (__m256)sum[1]);
#endif
    } else
        memcpy(c, sum, 2 * sizeof *sum);
}

INLINE void multiply_rows(const int many, const int keeping, const product *p) {
    const float *a = p->a, *b = p->b, *soon = p->soon;
    float *kept = p->kept, *c = p->c;
    long step = p->step, b_row = p->b_row, soon_row = p->soon_row, c_row = p->c_row;
    vector sum[MOST_ROWS][2];
    UNROLL for (int r = 0; r < many; r++) {
        sum[r][0] = p->add ? load(c + r * c_row) : (vector){0};
        sum[r][1] = p->add ? load(c + r * c_row + LANES) : (vector){0};
        if (!p->add && !p->past_caches)
            __builtin_prefetch(c + r * c_row, 1), __builtin_prefetch(c + r * c_row + LANES, 1);
    }
    for (long k = p->depth; k > 0; k--) {
        vector b0 = load(b), b1 = load(b + LANES);
        if (keeping) {
            memcpy(kept, &b0, sizeof b0), memcpy(kept + LANES, &b1, sizeof b1);
            kept += PANEL;
        }
        UNROLL for (int r = 0; r < many; r++) {
            vector w = splat(a[r]);
            sum[r][0] = multiply_add(w, b0, sum[r][0]);
            sum[r][1] = multiply_add(w, b1, sum[r][1]);
        }
        _mm_prefetch(soon, _MM_HINT_T0);
        a += step, b += b_row, soon += soon_row;
    }
    UNROLL for (int r = 0; r < many; r++) store_sums(c + r * c_row, sum[r], p->past_caches);
}

/* c[many][PANEL] = (or +=) rows of the weights, `row` apart, times b[depth][PANEL], of which all or, if `half`, the first
 * LANES columns are computed. LANES of each row are copied while the ones before are multiplied. */
INLINE void multiply_weights(const int many, const int half, const float *weight, long row, const float *b, float *c,
                             long depth, int add) {
    const int vectors = half ? 1 : 2;
    float copies[2][MOST_ROWS][LANES] __attribute__((aligned(64))), last[MOST_ROWS][LANES];
    vector sum[MOST_ROWS][2];
    UNROLL for (int r = 0; r < many; r++)
        UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = add ? load(c + r * PANEL + v * LANES) : (vector){0};
    for (int r = 0; r < many; r++) memcpy(copies[0][r], weight + r * row, smaller(depth, LANES) * sizeof(float));
    for (long k = 0; k < depth; k += LANES) {
        const float *copy = copies[k / LANES % 2][0], *from = weight + k + LANES;
        float *to = copies[(k / LANES + 1) % 2][0];
        long from_row = row, count = smaller(LANES, depth - k), left = depth - k - LANES;
        if (left < LANES) { /* the rows end: nothing past them may be read */
            for (int r = 0; r < many && left > 0; r++) memcpy(last[r], from + r * row, left * sizeof(float));
            from = last[0], from_row = LANES;
        }
        for (long j = 0; j < count; j++) {
            vector copied = load(from), columns[2];
            UNROLL for (int v = 0; v < vectors; v++) columns[v] = load(b + v * LANES);
            memcpy(to, &copied, sizeof copied);
            _mm_prefetch(from + AHEAD, _MM_HINT_T0);
            from += j < many - 1 ? from_row : 0, to += j < many - 1 ? LANES : 0;
            UNROLL for (int r = 0; r < many; r++) {
                vector w = splat(copy[r * LANES]);
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(w, columns[v], sum[r][v]);
            }
            copy++, b += PANEL;
        }
    }
    UNROLL for (int r = 0; r < many; r++) memcpy(c + r * PANEL, sum[r], vectors * sizeof(vector));
}

/* One of each for each number of rows */
#if LANES == 16
#define EACH(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14)
#else
#define EACH(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6)
#endif
#define DEFINE(MANY)                                                                                              \
    static void multiply_##MANY(const product *p) { multiply_rows(MANY, 0, p); }                                  \
    static void multiply_and_keep_##MANY(const product *p) { multiply_rows(MANY, 1, p); }                         \
    static void multiply_weights_##MANY(const float *weight, long row, const float *b, float *c, long depth,      \
                                        int add) {                                                                \
        multiply_weights(MANY, 0, weight, row, b, c, depth, add);                                                 \
    }                                                                                                             \
    static void multiply_half_##MANY(const float *weight, long row, const float *b, float *c, long depth,         \
                                     int add) {                                                                   \
        multiply_weights(MANY, 1, weight, row, b, c, depth, add);                                                 \
    }
EACH(DEFINE)
#define NAME(MANY) multiply_##MANY,
#define KEEPING_NAME(MANY) multiply_and_keep_##MANY,
#define WEIGHTS_NAME(MANY) multiply_weights_##MANY,
#define HALF_NAME(MANY) multiply_half_##MANY,
typedef void weight_product(const float *weight, long row, const float *b, float *c, long depth, int add);
static void (*const products[])(const product *) = {NULL, EACH(NAME)};
static void (*const keeping_products[])(const product *) = {NULL, EACH(KEEPING_NAME)};
static weight_product *const weight_products[] = {NULL, EACH(WEIGHTS_NAME)}, *const half_products[] = {NULL, EACH(HALF_NAME)};

/* Where the next group of `count` rows from `row` on ends: all as nearly as many rows as can be */
INLINE long end_of_group(long row, long count) {
    long groups = (count - row + MOST_ROWS - 1) / MOST_ROWS;
    return row + (count - row + groups - 1) / groups;
}

/* ---- packing ---- */

#define TURNED(J, S) ((J) & (S) ? LANES + (J) - (S) : (J))
#define KEPT(J, S) ((J) & (S) ? LANES + (J) : (J) + (S))
#if LANES == 16
#define ALL(F, S)                                                                                                 \
    F(0, S), F(1, S), F(2, S), F(3, S), F(4, S), F(5, S), F(6, S), F(7, S), F(8, S), F(9, S), F(10, S), F(11, S), \
        F(12, S), F(13, S), F(14, S), F(15, S)
#else
#define ALL(F, S) F(0, S), F(1, S), F(2, S), F(3, S), F(4, S), F(5, S), F(6, S), F(7, S)
#endif
#define EXCHANGE(S)                                                                                               \
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & S)) {                                                        \
        vector one = v[i], other = v[i + S];                                                                      \
        v[i] = __builtin_shufflevector(one, other, ALL(TURNED, S));                                               \
        v[i + S] = __builtin_shufflevector(one, other, ALL(KEPT, S));                                             \
    }

/* to[LANES][LANES] from such a square, with rows `row` and `to_row` apart */
INLINE void transpose(const float *from, long row, float *to, long to_row) {
    vector v[LANES];
    UNROLL for (int i = 0; i < LANES; i++) v[i] = load(from + i * row);
    EXCHANGE(1)
    EXCHANGE(2)
    EXCHANGE(4)
#if LANES == 16
    EXCHANGE(8)
#endif
    UNROLL for (int i = 0; i < LANES; i++) memcpy(to + i * to_row, &v[i], sizeof v[i]);
}

/* Inputs from `first` to `end` of a panel of the batch, as [input][PANEL] */
INLINE void pack_panel(const task *t, long panel, long first, long end, float *to) {
    for (long k = first; k < end; k += LANES)
        for (long half = 0; half < PANEL; half += LANES) {
            long row = panel * PANEL + half, rows = t->batch - row, columns = end - k;
            const float *from = t->x + row * t->inputs + k;
            float *square = to + (k - first) * PANEL + half, padded[LANES * LANES];
            if (rows >= LANES && columns >= LANES)
                transpose(from, t->inputs, square, PANEL);
            else { /* zeros where there is no more of the batch; `to` has room for whole LANES of inputs */
                for (long i = 0; i < LANES; i++) {
                    vector v = i < rows ? load_first(from + i * t->inputs, columns) : (vector){0};
                    memcpy(padded + i * LANES, &v, sizeof v);
                }
                transpose(padded, LANES, square, PANEL);
            }
        }
}

/* x is packed as [panel of the batch][input][PANEL] */
INLINE float *packed_panel(const task *t, long panel) {
    return t->packed + panel * rounded_up(t->inputs, LANES) * PANEL;
}

static void pack_inputs(task *t) {
    long stretches = (t->inputs + STRETCH - 1) / STRETCH, all = panels(t->batch) * stretches;
    for (long at; (at = take(&t->packing)) < all; done(&t->packing)) {
        long panel = at / stretches, first = at % stretches * STRETCH;
        pack_panel(t, panel, first, smaller(first + STRETCH, t->inputs), packed_panel(t, panel) + first * PANEL);
    }
    wait_for(&t->packing, all);
}

/* Of rows of the outputs' gradient as they are packed, an odd number of lines apart: no two in the same part of a cache */
INLINE long gradient_row(const task *t) { return (rounded_up(t->outputs, LINE) / LINE | 1) * LINE; }
INLINE long turned_row(const task *t) { return rounded_up(t->batch, LANES); }
INLINE float *turned(const task *t) { return t->packed + turned_row(t) * gradient_row(t); }

/* The outputs' gradient, 0 where ReLU made an output 0, as [batch][gradient_row] and as [outputs][turned_row] */
static void pack_gradient(task *t) {
    long stretches = (t->outputs + STRETCH - 1) / STRETCH;
    for (long at; (at = take(&t->packing)) < stretches; done(&t->packing))
        for (long n = at * STRETCH; n < smaller((at + 1) * STRETCH, t->outputs); n += LANES) {
            long count = t->outputs - n;
            float *to = t->packed + n;
            vector sum = {0};
            for (long row = 0; row < t->batch; row++) {
                vector v = load_first(t->y_gradient + row * t->outputs + n, count);
                if (t->relu) {
                    vector y = load_first(t->y + row * t->outputs + n, count);
                    v = chosen((bits)(y <= 0.0f), (vector){0}, v);
                }
                sum += v;
                memcpy(to + row * gradient_row(t), &v, sizeof v);
            }
            for (long row = 0; row < t->batch; row += LANES) /* what is past the batch is not used */
                transpose(to + row * gradient_row(t), gradient_row(t), turned(t) + n * turned_row(t) + row, turned_row(t));
            if (t->bias_gradient) store_first(t->bias_gradient + n, sum, count);
        }
    wait_for(&t->packing, stretches);
}

/* to[rows][PANEL] from rows that have fewer columns */
INLINE void widen(const float *from, long row, long rows, long columns, float *to) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < PANEL; j++) to[i * PANEL + j] = j < columns ? from[i * row + j] : 0.0f;
}

INLINE void narrow_rows(const float *from, long rows, float *to, long row, long columns) {
    for (long i = 0; i < rows; i++) memcpy(to + i * row, from + i * PANEL, columns * sizeof *to);
}

/* ---- who does what ---- */

/* Outputs, or inputs, that a thread takes at once: at most `most`, as many blocks for each thread */
INLINE long block_size(const task *t, long count, long most) {
    long blocks = rounded_up((count + most - 1) / most, t->threads);
    return larger((count + blocks - 1) / blocks, smaller(LANES, count));
}

/* Inputs whose gradient is computed at once: fewer of a large batch */
INLINE long columns_at_once(const task *t) {
    return rounded_up(block_size(t, t->inputs, smaller(COLUMNS, COLUMNS * 64 / t->batch / PANEL * PANEL)), PANEL);
}

/* Where there are few outputs, a thread takes all those of a panel of the batch, and packs its inputs for itself */
INLINE int by_panels(const task *t) { return t->outputs <= FEW_OUTPUTS && panels(t->batch) >= t->threads; }

/* Floats that a thread needs for either function */
long workspace_floats(const task *t) {
    long of_outputs = by_panels(t) ? (INPUTS_CHUNK + FEW_OUTPUTS) * PANEL : panels(t->batch) * BLOCK * PANEL;
    return larger(of_outputs, t->batch * columns_at_once(t));
}

/* Floats in `packed` that either function needs */
long packed_floats(const task *t) {
    long of_inputs = panels(t->batch) * PANEL * rounded_up(t->inputs, LANES);
    long of_gradient = turned_row(t) * gradient_row(t) + rounded_up(t->outputs, LANES) * turned_row(t);
    return larger(of_inputs, of_gradient);
}

/* ---- outputs ---- */

/* c[output][PANEL] of a panel of the batch, of outputs from `first` to `end` */
INLINE void write_outputs(const task *t, long panel, long first, long end, const float *c) {
    for (long row = panel * PANEL; row < smaller((panel + 1) * PANEL, t->batch); row += LANES)
        for (long n = first; n < end; n += LANES) {
            long count = end - n;
            float square[LANES * LANES];
            vector bias = t->bias ? load_first(t->bias + n, count) : (vector){0};
            transpose(c + (n - first) * PANEL + row % PANEL, PANEL, square, LANES); /* c has room for whole LANES */
            for (long i = 0; i < smaller(LANES, t->batch - row); i++) {
                vector y = load(square + i * LANES) + bias;
                if (t->relu) y = chosen((bits)(y <= 0.0f), (vector){0}, y); /* NaN stays, as in PyTorch */
                store_first(t->y + (row + i) * t->outputs + n, y, count);
            }
        }
}

/* c[row][PANEL] (or +=) a block of rows, of a panel of the batch, from inputs k on, of which x[input][PANEL] is packed */
INLINE void multiply_block(const task *t, long first, long rows, long panel, long k, const float *x, float *c) {
    weight_product *const *those = t->batch - panel * PANEL > LANES ? weight_products : half_products;
    for (long row = 0, end; row < rows; row = end) {
        end = end_of_group(row, rows);
        those[end - row](t->weight + (first + row) * t->inputs + k, t->inputs, x, c + row * PANEL,
                         smaller(INPUTS_CHUNK, t->inputs - k), k > 0);
    }
}

static void compute_outputs(void *data) {
    task *t = data;
    long block = block_size(t, t->outputs, BLOCK);
    float *c = t->workspace + atomic_fetch_add(&t->entered, 1) * workspace_floats(t);
    pack_inputs(t);
    for (long first; (first = block * take(&t->computing)) < t->outputs;) {
        long rows = smaller(block, t->outputs - first);
        for (long k = 0; k < t->inputs; k += INPUTS_CHUNK)
            for (long panel = 0; panel < panels(t->batch); panel++)
                multiply_block(t, first, rows, panel, k, packed_panel(t, panel) + k * PANEL,
                               c + panel * BLOCK * PANEL);
        for (long panel = 0; panel < panels(t->batch); panel++)
            write_outputs(t, panel, first, first + rows, c + panel * BLOCK * PANEL);
    }
}

static void compute_outputs_by_panels(void *data) {
    task *t = data;
    float *x = t->workspace + atomic_fetch_add(&t->entered, 1) * workspace_floats(t), *c = x + INPUTS_CHUNK * PANEL;
    for (long panel; (panel = take(&t->computing)) < panels(t->batch);) {
        for (long k = 0; k < t->inputs; k += INPUTS_CHUNK) {
            pack_panel(t, panel, k, smaller(k + INPUTS_CHUNK, t->inputs), x);
            multiply_block(t, 0, t->outputs, panel, k, x, c);
        }
        write_outputs(t, panel, 0, t->outputs, c);
    }
}

/* ---- gradients ---- */

/* c[rows][PANEL] of all rows, in groups: the first reads b and keeps its copy, which the others read. Each fetches the
 * next of the lines that make a row of PANEL from `soon` on. */
INLINE void multiply_all(product p, long rows, long columns) {
    const float *a = p.a, *soon = p.soon;
    float *c = p.c;
    int copied = columns < PANEL;
    if (copied) widen(p.b, p.b_row, p.depth, columns, p.kept);
    for (long row = 0, end; row < rows; row = end) {
        end = end_of_group(row, rows);
        p.a = a + row, p.c = c + row * p.c_row, p.soon = soon + (row > 0 ? LINE : 0);
        if (copied) p.b = p.kept, p.b_row = PANEL;
        (copied ? products : keeping_products)[end - row](&p);
        copied = 1;
    }
}

/* Of inputs from `first` to `end`; c[panel][batch][PANEL] */
INLINE void compute_input_gradient(const task *t, long first, long end, float *c) {
    float kept[OUTPUTS_CHUNK * PANEL] __attribute__((aligned(64)));
    for (long n = 0; n < t->outputs; n += OUTPUTS_CHUNK)
        for (long k = first; k < end; k += PANEL) {
            int last = k + PANEL >= end;
            product p = {
                .soon = last ? t->weight + (n + OUTPUTS_CHUNK) * t->inputs + first : t->weight + n * t->inputs + k + PANEL,
                .soon_row = t->inputs,
                .a = turned(t) + n * turned_row(t),
                .step = turned_row(t),
                .b = t->weight + n * t->inputs + k,
                .b_row = t->inputs,
                .kept = kept,
                .c = c + (k - first) * t->batch,
                .c_row = PANEL,
                .depth = smaller(OUTPUTS_CHUNK, t->outputs - n),
                .add = n > 0,
            };
            multiply_all(p, t->batch, end - k);
        }
    for (long k = first; k < end; k += PANEL)
        narrow_rows(c + (k - first) * t->batch, t->batch, t->x_gradient + k, t->inputs, smaller(PANEL, end - k));
}

/* Of outputs from `first` on, inputs from `begin` to `end` */
INLINE void compute_weight_gradient(const task *t, long first, long rows, long begin, long end) {
    float kept[MOST_BATCH * PANEL] __attribute__((aligned(64))), c[BLOCK * PANEL];
    for (long k = begin; k < end; k += PANEL) {
        int narrow = end - k < PANEL;
        float *to = t->weight_gradient + first * t->inputs + k;
        product p = {
            .soon = t->x + k + PANEL,
            .soon_row = t->inputs,
            .a = t->packed + first,
            .step = gradient_row(t),
            .b = t->x + k,
            .b_row = t->inputs,
            .kept = kept,
            .c = narrow ? c : to,
            .c_row = narrow ? PANEL : t->inputs,
            .depth = t->batch,
            .past_caches = t->past_caches && !narrow,
        };
        multiply_all(p, rows, end - k);
        if (narrow) narrow_rows(c, rows, to, t->inputs, end - k);
    }
}

static void compute_gradients(void *data) {
    task *t = data;
    float *c = t->workspace + atomic_fetch_add(&t->entered, 1) * workspace_floats(t);
    long width = columns_at_once(t), wide = (t->inputs + width - 1) / width;
    long block = block_size(t, t->outputs, BLOCK), high = (t->outputs + block - 1) / block;
    long of_inputs = t->x_gradient ? wide : 0, of_weights = t->weight_gradient ? wide * high : 0;
    pack_gradient(t);
    for (long at; (at = take(&t->computing)) < of_inputs + of_weights;) {
        long first = at % wide * width, end = smaller(first + width, t->inputs);
        if (at < of_inputs)
            compute_input_gradient(t, first, end, c);
        else {
            long row = (at - of_inputs) / wide * block;
            compute_weight_gradient(t, row, smaller(block, t->outputs - row), first, end);
        }
    }
    _mm_sfence(); /* what was written past the caches is seen by all after this region */
}

/* ---- what is called ---- */

/* y from x, weight and bias */
void forward(task *t) {
    t->parallel(by_panels(t) ? compute_outputs_by_panels : compute_outputs, t, t->threads);
}

/* The gradients that are wanted from that of y. Which thread does which part changes no result. */
void backward(task *t) { t->parallel(compute_gradients, t, t->threads); }
