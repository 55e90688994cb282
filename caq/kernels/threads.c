/* A team of POSIX threads (caq_team in caq.h), the only file here that knows an operating system.
 *
 * The parts of a step are bits of a word, set until somebody takes them. The caller and every worker that is awake take
 * one after the other; the caller returns when all that were taken are done. So nobody waits for a worker that is late
 * or asleep: it finds less to take, or nothing. Each takes its own parts first, the same of every step, as its caches
 * hold what it wrote there. A worker that finds nothing looks for more for SPIN_NS, as the next step mostly comes
 * within microseconds, and then sleeps until a step wakes it.
 *
 * Memory is the caller's, so that this file allocates no more than the others; the threads' stacks are the system's.
 */
#define _POSIX_C_SOURCE 200809L
#include "caq.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 64 }; /* bytes that processors hand to each other at once */
enum { SPIN_NS = 100000, TURN_NS = 4000, LOOKS = 64, WAITS = 2000 };
/* Two parts, so that who is slow or late can leave one to others. */
enum { MOST_PARTS = 63, PARTS_A_THREAD = 2 };
static const uint64_t STOPPED = (uint64_t)1 << MOST_PARTS;
/* 1 us with AVX-512 VNNI, where a part takes 0.1 us to change hands between near cores and 0.8 us between far ones. For
 * small networks (ResNet-8) half of it gains nothing more, and twice as much loses 5 %. */
enum { GRAIN = 200000 };

typedef struct {
    caq_team team; /* first, so that a pointer to it is one to all */
    pid_t process;
    atomic_flag taken; /* by an inference */
    int workers;
    atomic_int numbered;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    unsigned wakes;      /* under the lock */
    atomic_int sleepers; /* written under the lock; read without, where being wrong costs time only */
    caq_part *part;
    const void *context;
    alignas(LINE) _Atomic uint64_t untaken; /* parts, or STOPPED; whoever takes one sees `part` and `context` */
    alignas(LINE) atomic_int unfinished;
    alignas(LINE) pthread_t threads[];
} pool;

static void pause_a_little(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* Runs a part that nobody had taken: the first of `own`, or else the last. Returns whether there was one. */
static int take_part(pool *p, uint64_t own) {
    uint64_t left;
    while ((left = atomic_load_explicit(&p->untaken, memory_order_relaxed) & ~STOPPED)) {
        const int index = left & own ? __builtin_ctzll(left & own) : 63 - __builtin_clzll(left);
        const uint64_t bit = (uint64_t)1 << index;
        if (atomic_fetch_and_explicit(&p->untaken, ~bit, memory_order_acquire) & bit) {
            p->part(p->context, index);
            atomic_fetch_sub_explicit(&p->unfinished, 1, memory_order_release);
            return 1;
        }
    }
    return 0;
}

/* The parts of the `number`-th thread; the caller's is 0. */
static uint64_t own_parts(const pool *p, int number) {
    const int count = p->team.parts / p->team.threads;
    return (((uint64_t)1 << count) - 1) << (count * number);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Whether something happens to `untaken` soon. */
static int spin(pool *p) {
    const int64_t end = now_ns() + SPIN_NS;
    for (int64_t now = 0; now < end;) {
        const int64_t turn = now_ns() + TURN_NS;
        do {
            for (int i = 0; i < LOOKS; i++) {
                if (atomic_load_explicit(&p->untaken, memory_order_relaxed)) return 1;
                pause_a_little();
            }
            now = now_ns();
        } while (now < turn);
        sched_yield(); /* on a busy machine the caller itself may be waiting for this processor */
    }
    return 0;
}

static void sleep_until_woken(pool *p) {
    pthread_mutex_lock(&p->lock);
    if (!atomic_load_explicit(&p->untaken, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_relaxed);
        for (const unsigned before = p->wakes; p->wakes == before;) pthread_cond_wait(&p->woken, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

/* With the lock. */
static void wake_all(pool *p) {
    p->wakes++;
    atomic_store_explicit(&p->sleepers, 0, memory_order_relaxed);
    pthread_cond_broadcast(&p->woken);
}

static void *work(void *argument) {
    pool *p = argument;
    const uint64_t own = own_parts(p, 1 + atomic_fetch_add_explicit(&p->numbered, 1, memory_order_relaxed));
    while (atomic_load_explicit(&p->untaken, memory_order_relaxed) != STOPPED)
        if (!take_part(p, own) && !spin(p)) sleep_until_woken(p);
    return 0;
}

static void share(caq_team *team, int32_t parts, caq_part *part, const void *context) {
    pool *p = (pool *)team;
    p->part = part;
    p->context = context;
    atomic_store_explicit(&p->unfinished, parts, memory_order_relaxed);
    atomic_store_explicit(&p->untaken, ((uint64_t)1 << parts) - 1, memory_order_release);
    /* If the lock is not free, somebody is about to sleep or to wake, and the next step will see. */
    if (atomic_load_explicit(&p->sleepers, memory_order_relaxed) && !pthread_mutex_trylock(&p->lock)) {
        wake_all(p);
        pthread_mutex_unlock(&p->lock);
    }
    const uint64_t own = own_parts(p, 0);
    while (take_part(p, own)) {}
    for (int i = 0; atomic_load_explicit(&p->unfinished, memory_order_acquire); i++)
        if (i < WAITS)
            pause_a_little();
        else
            sched_yield(); /* whoever has the part may be waiting for this very processor */
}

static int enter(caq_team *team) {
    pool *p = (pool *)team;
    return p->process == getpid() && !atomic_flag_test_and_set_explicit(&p->taken, memory_order_acquire);
}

static void leave(caq_team *team) { atomic_flag_clear_explicit(&((pool *)team)->taken, memory_order_release); }

int64_t caq_team_bytes(int32_t threads) { return (int64_t)sizeof(pool) + (int64_t)sizeof(pthread_t) * (threads - 1); }

int caq_team_start(caq_team *team, int32_t threads) {
    pool *p = (pool *)team;
    memset(p, 0, sizeof *p);
    const int64_t parts = PARTS_A_THREAD * (int64_t)threads;
    p->team = (caq_team){threads, parts < MOST_PARTS ? (int32_t)parts : MOST_PARTS, GRAIN, enter, leave, share};
    p->process = getpid();
    atomic_flag_clear(&p->taken);
    int failed = pthread_mutex_init(&p->lock, 0);
    if (failed) return failed;
    failed = pthread_cond_init(&p->woken, 0);
    if (failed) {
        pthread_mutex_destroy(&p->lock);
        return failed;
    }
    /* Signals are for the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->workers < threads - 1 && !(failed = pthread_create(&p->threads[p->workers], 0, work, p))) p->workers++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (failed) caq_team_stop(team);
    return failed;
}

void caq_team_stop(caq_team *team) {
    pool *p = (pool *)team;
    if (p->process != getpid()) return;
    atomic_store_explicit(&p->untaken, STOPPED, memory_order_relaxed);
    pthread_mutex_lock(&p->lock);
    wake_all(p);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->workers; i++) pthread_join(p->threads[i], 0);
    pthread_cond_destroy(&p->woken);
    pthread_mutex_destroy(&p->lock);
}
#else
int64_t caq_team_bytes(int32_t threads) {
    (void)threads;
    return 0;
}

int caq_team_start(caq_team *team, int32_t threads) {
    (void)team;
    (void)threads;
    return 1;
}

void caq_team_stop(caq_team *team) { (void)team; }
#endif
