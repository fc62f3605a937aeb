/*
 * A chain through memory that proves that not one page was lost or went back in time.
 *
 * Pages are written in turn, over and over. Each holds its number, the pass, a fill, the digest of
 * the content that it replaced, and a link; `digest` covers all of that. The link of a page is the
 * mix of link, replaced and digest of the page written just before it, so it covers the whole history.
 * Outside the pages stand how many were ever written, the link that the oldest page must hold (tail)
 * and the one that the next page will hold (head).
 *
 * Before a page is rewritten it must be what the chain says: a page that is missing, torn, or whole
 * but of an earlier pass is seen one pass later at the latest. `verify_chain` does not wait: it walks
 * from tail through every page in the order of writing and must arrive at head.
 *
 * What this cannot see from inside is the whole guest going back, chain and all. That is seen from
 * outside, by counters that may not go back (struct reply in workload.c).
 */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

enum { PAGE = 4096, FILL = PAGE / 8 - 6, PAGES_PER_MIB = 256, TICKS_PER_S = 100 };

#define PAGE_MAGIC 0x31454741504d4751ull /* "QGMPAGE1": by this a page is found in a dump of RAM */

struct page {
    uint64_t magic, digest, pass, number, link, replaced, fill[FILL];
};
_Static_assert(sizeof(struct page) == PAGE, "a page is a page");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct page *pages;
static bool *known_bad; /* counted already; until the page is rewritten */
static bool tail_lost;  /* after a bad page its successor's link cannot be foretold */
static uint64_t count, written, bad, rate, tail = GENESIS, head = GENESIS;

static uint64_t link_after(const struct page *page)
{
    return mix(mix(mix(GENESIS, page->link), page->replaced), page->digest);
}

static bool page_is(const struct page *page, uint64_t pass, uint64_t number)
{
    return page->magic == PAGE_MAGIC && page->pass == pass && page->number == number &&
           page->digest == digest_of(page, PAGE);
}

/* Is the page what was written there `at` writes after the start? `link` and `lost` move on. */
static void check_page(uint64_t at, uint64_t *link, bool *lost)
{
    uint64_t number = at % count;
    const struct page *page = &pages[number];
    bool good = page_is(page, at / count + 1, number);

    if (!good || (!*lost && page->link != *link)) {
        if (!known_bad[number])
            bad++;
        known_bad[number] = true;
    }
    *lost = !good;
    *link = link_after(page);
}

static void write_next_page(void)
{
    struct page *page = &pages[written % count];

    if (written >= count)
        check_page(written - count, &tail, &tail_lost);
    known_bad[written % count] = false;
    page->replaced = page->digest;
    page->magic = PAGE_MAGIC;
    page->pass = written / count + 1;
    page->number = written % count;
    page->link = head;
    uint64_t x = head ^ written;
    for (size_t i = 0; i < FILL; i++) /* Knuth's MMIX generator */
        page->fill[i] = x = x * 6364136223846793005ull + 1442695040888963407ull;
    page->digest = digest_of(page, PAGE);
    head = link_after(page);
    written++;
}

void verify_chain(void)
{
    pthread_mutex_lock(&lock);
    uint64_t at = written < count ? 0 : written - count, link = tail;
    bool lost = tail_lost;

    for (; at < written; at++)
        check_page(at, &link, &lost);
    if (count && !lost && link != head)
        bad++;
    pthread_mutex_unlock(&lock);
}

static void *dirty_memory(void *unused)
{
    struct timespec wake, now;
    uint64_t owed = 0; /* in TICKS_PER_S parts of a page, so that slow rates are kept too */

    setpriority(PRIO_PROCESS, syscall(SYS_gettid), 10); /* probes come first */
    clock_gettime(CLOCK_MONOTONIC, &wake);
    for (;;) {
        owed += __atomic_load_n(&rate, __ATOMIC_RELAXED) * PAGES_PER_MIB;
        for (; owed >= TICKS_PER_S; owed -= TICKS_PER_S) {
            pthread_mutex_lock(&lock);
            write_next_page();
            pthread_mutex_unlock(&lock);
        }
        wake.tv_nsec += 1000000000 / TICKS_PER_S;
        if (wake.tv_nsec >= 1000000000) {
            wake.tv_nsec -= 1000000000;
            wake.tv_sec++;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > wake.tv_sec + 1) /* the rate is more than this CPU can do: forget the debt */
            wake = now;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
    }
    return unused;
}

void begin_chain(uint64_t mib, uint64_t rate_mib)
{
    rate = rate_mib;
    count = mib * PAGES_PER_MIB;
    if (!count)
        return;
    pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    known_bad = calloc(count, sizeof *known_bad);
    if (pages == MAP_FAILED || !known_bad)
        err(1, "memory for %llu MiB", (unsigned long long)mib);
    while (written < count)
        write_next_page();
    start(dirty_memory, NULL);
}

struct chain_state chain_state(void)
{
    struct chain_state state = {
        .pages = count,
        .written = __atomic_load_n(&written, __ATOMIC_RELAXED),
        .bad = __atomic_load_n(&bad, __ATOMIC_RELAXED),
        .head = __atomic_load_n(&head, __ATOMIC_RELAXED),
        .rate_mib = __atomic_load_n(&rate, __ATOMIC_RELAXED),
    };
    state.verdict = !count ? ABSENT : state.bad ? BROKEN : INTACT;
    return state;
}

bool poke_page(uint64_t number)
{
    if (number >= count)
        return false;
    pthread_mutex_lock(&lock);
    pages[number].fill[100] ^= 1;
    pthread_mutex_unlock(&lock);
    return true;
}

bool set_rate(uint64_t rate_mib)
{
    __atomic_store_n(&rate, rate_mib, __ATOMIC_RELAXED);
    return count || !rate_mib;
}
