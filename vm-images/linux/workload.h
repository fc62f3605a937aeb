/* What the parts of the workload share: the hash, and the two things that are kept and proved. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BOOT_ID = 36 };
enum verdict { ABSENT, INTACT, BROKEN };

#define GENESIS 0x9e3779b97f4a7c15ull /* the link of the first page and of the first record */

/* One word into a hash. For any h it is one to one in `word`: no single wrong word can hide. */
static inline uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * 0xff51afd7ed558ccdull;
    return h ^ h >> 32;
}

/* Covers everything but the digest itself, which is the second word of pages and records alike. */
static inline uint64_t digest_of(const void *block, size_t size)
{
    const uint64_t *word = block;
    uint64_t h = mix(GENESIS, word[0]);
    for (size_t i = 2; i < size / 8; i++)
        h = mix(h, word[i]);
    return h;
}

uint64_t uptime_ms(void);
void start(void *(*work)(void *), void *argument); /* a thread of its own, for ever */
extern char boot_id[BOOT_ID + 1];

/* Memory: chain.c. Reading `state` takes no lock: a walk under way must not delay an answer. */
struct chain_state {
    uint64_t pages, written, bad, head, rate_mib;
    enum verdict verdict;
};
void begin_chain(uint64_t mib, uint64_t rate_mib);
struct chain_state chain_state(void);
void verify_chain(void);
bool poke_page(uint64_t number);
bool set_rate(uint64_t rate_mib);

/* Disk: disklog.c */
struct disk_state {
    uint64_t written, bad;
    enum verdict verdict;
};
void begin_disk_log(const char *path);
struct disk_state disk_state(void);
void verify_disk_log(void);

#endif
