/*
 * The workload of the `linux` guest: answers over the network, dirties memory (chain.c), keeps a log on
 * its disk (disklog.c), and proves at any time that nothing of either was lost.
 *
 *     workload MIB RATE DISK    the service: dirty MIB MiB at RATE MiB/s (RATE 0: fill it once);
 *                               DISK 1: keep a log on /dev/vda
 *     workload COMMAND...       send one command to the service, print the answer (for the console)
 *
 * Port 7, UDP   a probe of 8 bytes or more is answered by `struct reply`, padded to the probe's size
 * Port 7, TCP   every byte comes back
 * Port 8, TCP   one command a line, one JSON object a line:
 *     state         what is known without looking
 *     verify        walk all pages and the disk's log now, then as state
 *     poke PAGE     flip one bit of a page by hand, then as state; verify must see it
 *     rate MIB      dirty at another rate
 *     poweroff, reboot
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

enum { ECHO_PORT = 7, CONTROL_PORT = 8 };

#define REPLY_MAGIC 0x314c5751u /* "QWL1" */

struct __attribute__((packed)) reply { /* little endian; qmigrate/lab/workload.py reads it */
    uint64_t probe;
    uint32_t magic;
    uint8_t memory, disk; /* enum verdict */
    uint16_t zero;
    uint64_t answered_before; /* never said twice, but by a copy of the guest from before */
    uint64_t written, pages, bad_pages, head, uptime_ms;
    char boot_id[BOOT_ID];
};

char boot_id[BOOT_ID + 1];
static uint64_t answered;

uint64_t uptime_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

void start(void *(*work)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, argument))
        errx(1, "no thread");
    pthread_detach(thread);
}

static int bound(int type, int port)
{
    int on = 1, sock = socket(AF_INET6, type | SOCK_CLOEXEC, 0); /* takes IPv4 as well */
    struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(sock, (struct sockaddr *)&address, sizeof address) ||
        (type == SOCK_STREAM && listen(sock, 64)))
        err(1, "port %d", port);
    return sock;
}

static void fill_reply(struct reply *reply)
{
    struct chain_state chain = chain_state();

    reply->magic = REPLY_MAGIC;
    reply->memory = chain.verdict;
    reply->disk = disk_state().verdict;
    reply->zero = 0;
    reply->answered_before = answered++;
    reply->written = chain.written;
    reply->pages = chain.pages;
    reply->bad_pages = chain.bad;
    reply->head = chain.head;
    reply->uptime_ms = uptime_ms();
    memcpy(reply->boot_id, boot_id, BOOT_ID);
}

static void answer_probes(int sock)
{
    static union {
        struct reply reply;
        char bytes[65536];
    } buffer;
    struct sockaddr_in6 peer;
    char control[256];
    struct iovec part = { .iov_base = &buffer };
    struct msghdr message = { .msg_name = &peer, .msg_iov = &part, .msg_iovlen = 1 };
    struct sched_param first = { .sched_priority = 1 };
    int on = 1;

    sched_setscheduler(0, SCHED_FIFO, &first);
    /* With its own packet info handed back, a reply leaves from the address that was asked. */
    setsockopt(sock, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    for (;;) {
        part.iov_len = sizeof buffer;
        message.msg_namelen = sizeof peer;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        ssize_t size = recvmsg(sock, &message, 0);
        if (size < 8)
            continue;
        fill_reply(&buffer.reply);
        part.iov_len = (size_t)size > sizeof buffer.reply ? (size_t)size : sizeof buffer.reply;
        sendmsg(sock, &message, 0);
    }
}

static bool send_all(int sock, const char *bytes, size_t size)
{
    while (size) {
        ssize_t sent = send(sock, bytes, size, 0);
        if (sent < 0)
            return false;
        bytes += sent;
        size -= sent;
    }
    return true;
}

static void *echo_bytes(void *connection)
{
    int sock = (intptr_t)connection;
    char bytes[16384];
    ssize_t size;

    while ((size = recv(sock, bytes, sizeof bytes, 0)) > 0 && send_all(sock, bytes, size))
        ;
    close(sock);
    return NULL;
}

static void print_state(FILE *out)
{
    static const char *const verdicts[] = { "absent", "intact", "broken" };
    struct chain_state chain = chain_state();
    struct disk_state disk = disk_state();

    fprintf(out,
            "{\"boot_id\": \"%s\", \"uptime_ms\": %lu, \"answered_before\": %lu, "
            "\"memory\": \"%s\", \"pages\": %lu, \"written\": %lu, \"bad_pages\": %lu, "
            "\"chain\": \"%016lx\", \"rate_mib\": %lu, "
            "\"disk\": \"%s\", \"records\": %lu, \"bad_records\": %lu}\n",
            boot_id, uptime_ms(), answered, verdicts[chain.verdict], chain.pages, chain.written,
            chain.bad, chain.head, chain.rate_mib, verdicts[disk.verdict], disk.written, disk.bad);
}

static bool obey(char *line)
{
    unsigned long number;
    char end;

    line[strcspn(line, "\r\n")] = 0;
    if (!strcmp(line, "verify")) {
        verify_chain();
        verify_disk_log();
        return true;
    }
    if (!strcmp(line, "poweroff"))
        reboot(RB_POWER_OFF);
    if (!strcmp(line, "reboot"))
        reboot(RB_AUTOBOOT);
    if (sscanf(line, "poke %lu%c", &number, &end) == 1)
        return poke_page(number);
    if (sscanf(line, "rate %lu%c", &number, &end) == 1)
        return set_rate(number);
    return !strcmp(line, "state");
}

static void *take_commands(void *connection)
{
    int sock = (intptr_t)connection, copy = dup(sock);
    FILE *in = fdopen(sock, "r"), *out = fdopen(copy, "w");
    char line[256];

    if (!in || !out)
        errx(1, "no memory for a connection");
    while (fgets(line, sizeof line, in)) {
        if (obey(line))
            print_state(out);
        else
            fprintf(out, "{\"error\": \"not a command, or no such page\"}\n");
        if (fflush(out))
            break;
    }
    fclose(in);
    fclose(out);
    return NULL;
}

struct service {
    int sock;
    void *(*serve)(void *);
};

static void *accept_all(void *argument)
{
    const struct service *service = argument;
    int on = 1, sock;

    for (;;) {
        if ((sock = accept4(service->sock, NULL, NULL, SOCK_CLOEXEC)) < 0)
            continue;
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        start(service->serve, (void *)(intptr_t)sock);
    }
    return NULL;
}

static int ask(int words, char **word)
{
    struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(CONTROL_PORT),
                                    .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    int sock = socket(AF_INET6, SOCK_STREAM, 0);
    char bytes[1024];
    ssize_t size;

    if (connect(sock, (struct sockaddr *)&address, sizeof address))
        err(1, "the workload does not run");
    for (int i = 0; i < words; i++)
        dprintf(sock, "%s%c", word[i], i + 1 < words ? ' ' : '\n');
    shutdown(sock, SHUT_WR);
    while ((size = read(sock, bytes, sizeof bytes)) > 0)
        if (write(1, bytes, size) != size)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 4 || argv[1][0] < '0' || argv[1][0] > '9')
        return ask(argc - 1, argv + 1);
    signal(SIGPIPE, SIG_IGN);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!file || fread(boot_id, BOOT_ID, 1, file) != 1)
        err(1, "boot_id");
    fclose(file);
    begin_chain(strtoull(argv[1], NULL, 10), strtoull(argv[2], NULL, 10));
    if (argv[3][0] == '1')
        begin_disk_log("/dev/vda");
    struct service echo = { bound(SOCK_STREAM, ECHO_PORT), echo_bytes };
    struct service control = { bound(SOCK_STREAM, CONTROL_PORT), take_commands };
    int probes = bound(SOCK_DGRAM, ECHO_PORT);
    start(accept_all, &echo);
    start(accept_all, &control);
    printf("workload: ready, boot %s\n", boot_id);
    fflush(stdout);
    answer_probes(probes);
}
