/*
 * A log on a disk that proves that no write was lost, and that nobody else wrote there.
 *
 * A ring of numbered, linked records, one a sector; each is on the disk (O_SYNC) before the next
 * begins, and read back past the kernel's cache (O_DIRECT). Memory remembers every record's link: a
 * disk that is older than the memory and one that is newer are both seen.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workload.h"

enum { SECTOR = 512, SECTORS = 2048, RECORDS_PER_S = 10, ALIGNMENT = 4096 };

#define RECORD_MAGIC 0x31474f4c4d4751ull /* "QGMLOG1" */

struct record {
    uint64_t magic, digest, number, link, uptime_ms;
    char boot_id[BOOT_ID];
    char unused[SECTOR - 5 * 8 - BOOT_ID];
};
_Static_assert(sizeof(struct record) == SECTOR, "a record is a sector");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int file = -1;
static uint64_t written, failed, wrong, head = GENESIS, links[SECTORS];

static uint64_t link_after(const struct record *record)
{
    return mix(mix(GENESIS, record->link), record->digest);
}

static struct record *aligned(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, size))
        errx(1, "memory for the disk's log");
    return memory;
}

static void write_record(struct record *record)
{
    uint64_t sector = written % SECTORS;

    memset(record, 0, SECTOR);
    record->magic = RECORD_MAGIC;
    record->number = written;
    record->link = links[sector] = head;
    record->uptime_ms = uptime_ms();
    memcpy(record->boot_id, boot_id, BOOT_ID);
    record->digest = digest_of(record, SECTOR);
    if (pwrite(file, record, SECTOR, sector * SECTOR) != SECTOR)
        failed++;
    head = link_after(record);
    written++;
}

static void *keep_log(void *unused)
{
    struct record *record = aligned(SECTOR);
    for (;;) {
        pthread_mutex_lock(&lock);
        write_record(record);
        pthread_mutex_unlock(&lock);
        usleep(1000000 / RECORDS_PER_S);
    }
    return unused;
}

void begin_disk_log(const char *path)
{
    if ((file = open(path, O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC)) < 0)
        err(1, "%s", path);
    start(keep_log, NULL);
}

void verify_disk_log(void)
{
    static struct record *ring;

    if (file < 0)
        return;
    pthread_mutex_lock(&lock);
    if (!ring)
        ring = aligned(SECTORS * SECTOR);
    ssize_t size = pread(file, ring, SECTORS * SECTOR, 0);
    uint64_t found = 0;
    for (uint64_t at = written < SECTORS ? 0 : written - SECTORS; at < written; at++) {
        const struct record *record = &ring[at % SECTORS];
        uint64_t following = at + 1 < written ? links[(at + 1) % SECTORS] : head;
        if (size < (ssize_t)((at % SECTORS + 1) * SECTOR) || record->magic != RECORD_MAGIC ||
            record->number != at || record->link != links[at % SECTORS] ||
            record->digest != digest_of(record, SECTOR) || link_after(record) != following)
            found++;
    }
    if (found > wrong) /* what was wrong once stays so, though the ring comes round */
        wrong = found;
    pthread_mutex_unlock(&lock);
}

struct disk_state disk_state(void)
{
    struct disk_state state = {
        .written = __atomic_load_n(&written, __ATOMIC_RELAXED),
        .bad = __atomic_load_n(&failed, __ATOMIC_RELAXED) + __atomic_load_n(&wrong, __ATOMIC_RELAXED),
    };
    state.verdict = file < 0 ? ABSENT : state.bad ? BROKEN : INTACT;
    return state;
}
