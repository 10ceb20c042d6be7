/* Threads that wait for work: what libgomp's GOMP_parallel does, at less than the cost of waking one. A member that has
 * nothing to do goes on looking for a while, and lets whoever else wants its core have it (sched_yield), before it sleeps.
 * libgomp's only spin, which has to be short, or two trainings at once come almost to a stand.
 *
 * Work has to be such that any number of threads can do it, the caller alone too: a member that is late does not join, and
 * after a fork there is none.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_MEMBERS 1023
#define LOOKS 64               /* before another program may have the core */
#define AWAKE_NANOSECONDS 500000 /* without work, before a member sleeps */

/* The state of the work in hand: its number, whether members may still join, and how many have */
#define NUMBER(S) ((uint32_t)((S) >> 32))
#define OPEN (1ull << 31)
#define JOINED(S) ((uint32_t)(S) & 0xFFFF)

static atomic_ullong state;
static atomic_uint finished, number; /* `number` is that of the state, for members to sleep on */
static atomic_int sleeping, busy;
static unsigned members;
static atomic_uint wanted; /* which a member that is late may read while it changes */
static void (*work)(void *);
static void *data;

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void look(const atomic_uint *value, unsigned seen) {
    for (int i = 0; i < LOOKS && atomic_load_explicit(value, memory_order_acquire) == seen; i++) _mm_pause();
}

/* Until there is other work than number `seen` */
static void wait_for_work(unsigned seen) {
    int64_t until = nanoseconds() + AWAKE_NANOSECONDS;
    while (nanoseconds() < until) {
        look(&number, seen);
        if (atomic_load(&number) != seen) return;
        sched_yield();
    }
    atomic_fetch_add(&sleeping, 1);
    while (atomic_load(&number) == seen) syscall(SYS_futex, &number, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&sleeping, 1);
}

/* Whether it is not too late, and there are not enough already */
static int join(unsigned which) {
    unsigned long long s = atomic_load(&state);
    while (NUMBER(s) == which && (s & OPEN) && JOINED(s) < wanted)
        if (atomic_compare_exchange_weak(&state, &s, s + 1)) return 1;
    return 0;
}

static void *member(void *start) {
    for (unsigned seen = (uintptr_t)start;;) {
        wait_for_work(seen);
        seen = atomic_load(&number);
        if (join(seen)) {
            work(data);
            atomic_fetch_add(&finished, 1);
        }
    }
    return NULL;
}

static void enlist(unsigned count) {
    for (; members < count && members < MOST_MEMBERS; members++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, member, (void *)(uintptr_t)atomic_load(&number))) return;
        pthread_detach(thread);
    }
}

/* Call `function` with `argument` in up to `threads` threads, this one among them. With work in hand already, or within
 * it, in this one alone. */
void team_parallel(void (*function)(void *), void *argument, unsigned threads) {
    if (threads <= 1 || atomic_exchange(&busy, 1)) {
        function(argument);
        return;
    }
    enlist(threads - 1);
    unsigned next = atomic_load(&number) + 1;
    work = function, data = argument, wanted = threads - 1;
    atomic_store(&finished, 0);
    atomic_store(&state, (unsigned long long)next << 32 | OPEN);
    atomic_store(&number, next);
    if (atomic_load(&sleeping)) syscall(SYS_futex, &number, FUTEX_WAKE_PRIVATE, (int)threads - 1, NULL, NULL, 0);
    function(argument);
    unsigned joined = JOINED(atomic_fetch_and(&state, ~OPEN));
    for (unsigned f; (f = atomic_load(&finished)) < joined;) {
        look(&finished, f);
        if (atomic_load(&finished) < joined) sched_yield();
    }
    atomic_store(&busy, 0);
}
