/* The ends of the TCP loads: each mode is one program run.
 *
 *   tcp_load serve PORT                         echo everything, until end of input
 *   tcp_load sink PORT                          read one connection to its end; prints what came, and the longest pause
 *   tcp_load flood ADDRESS PORT SECONDS         write as fast as it goes, then end the stream; prints what was written
 *   tcp_load connect ADDRESS PORT SIZE SECONDS  connect, exchange, close, again; prints the rounds
 *   tcp_load ask ADDRESS PORT SIZE SECONDS      exchange on one connection, again; prints the round trips
 *   tcp_load hold ADDRESS PORT COUNT            open so many, exchange a byte on each, keep them until end of input
 *
 * Theory of operation: IPv4 only, one thread, and nothing between two system calls that a proxy could hide behind. What
 * listens prints "ready" when it does; figures are one line of JSON. A pause is the time between two receives of the
 * sink, so the wait for the first byte and for the end of the stream do not count.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER = 256 << 10,   /* bytes of one read or write of a stream */
    MOST_TRIPS = 1 << 22, /* round trips that are remembered */
    MOST_LOST = 20,       /* after which a load is given up */
    ANSWER_SECONDS = 2,   /* to wait for an answer */
    DRAIN_SECONDS = 20,   /* to wait for the end of what was written */
    BACKLOG = 4096,
    EVENTS = 64,
};

static char buffer[BUFFER];
static float trips[MOST_TRIPS];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void be_ready(void)
{
    puts("ready");
    fflush(stdout);
}

static void await_end_of_input(void)
{
    char byte;

    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
}

static struct sockaddr_in endpoint(const char *address, const char *port)
{
    struct sockaddr_in end = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

    if (inet_pton(AF_INET, address, &end.sin_addr) != 1)
        fail(address);
    return end;
}

static void set(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value))
        fail("setsockopt");
}

static int listener(const char *port)
{
    struct sockaddr_in end = endpoint("0.0.0.0", port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, (struct sockaddr *)&end, sizeof end) || listen(fd, BACKLOG))
        fail("listen");
    return fd;
}

/* Return a connected socket, or -1. */
static int connection(const struct sockaddr_in *end)
{
    struct timeval limit = {.tv_sec = ANSWER_SECONDS};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0)
        fail("socket");
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (!connect(fd, (const struct sockaddr *)end, sizeof *end))
        return fd;
    close(fd);
    return -1;
}

static int exchange(int fd, int size)
{
    return send(fd, buffer, size, MSG_NOSIGNAL) == size && recv(fd, buffer, size, MSG_WAITALL) == size;
}

static void serve(const char *port)
{
    int listening = listener(port), poller = epoll_create1(0), count, fd;
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    ssize_t size;

    event.data.fd = STDIN_FILENO;
    epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    event.data.fd = listening;
    epoll_ctl(poller, EPOLL_CTL_ADD, listening, &event);
    be_ready();
    for (;;) {
        count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            fd = events[i].data.fd;
            if (fd == STDIN_FILENO)
                return;
            if (fd == listening) {
                if ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) < 0)
                    continue;
                set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
                event.data.fd = fd;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            size = recv(fd, buffer, sizeof buffer, 0);
            if (size > 0)
                send(fd, buffer, size, MSG_NOSIGNAL);
            else if (!size || errno != EAGAIN)
                close(fd);
        }
    }
}

static void sink(const char *port)
{
    int listening = listener(port), fd;
    double first = 0, last = 0, longest = 0, time;
    unsigned long long received = 0;
    ssize_t size;

    be_ready();
    if ((fd = accept(listening, NULL, NULL)) < 0)
        fail("accept");
    while ((size = recv(fd, buffer, sizeof buffer, 0)) > 0) {
        time = now();
        if (!received)
            first = last = time;
        if (time - last > longest)
            longest = time - last;
        last = time;
        received += size;
    }
    printf("{\"received\": %llu, \"seconds\": %.6f, \"longest_pause_ms\": %.3f, \"whole\": %s}\n", received,
           last - first, longest * 1e3, size ? "false" : "true");
}

static void flood(const char *address, const char *port, double seconds)
{
    struct sockaddr_in end = endpoint(address, port);
    int fd = connection(&end);
    struct pollfd writable = {.fd = fd, .events = POLLOUT}, readable = {.fd = fd, .events = POLLIN};
    unsigned long long sent = 0;
    double began = now(), left;
    ssize_t size;

    if (fd < 0)
        fail("connect");
    while ((left = began + seconds - now()) > 0) {
        size = send(fd, buffer, sizeof buffer, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (size > 0)
            sent += size;
        else if (errno != EAGAIN)
            fail("send");
        else
            poll(&writable, 1, left * 1e3 + 1);
    }
    shutdown(fd, SHUT_WR);
    poll(&readable, 1, DRAIN_SECONDS * 1000);
    printf("{\"sent\": %llu, \"seconds\": %.6f}\n", sent, seconds);
}

static int compare(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;

    return (a > b) - (a < b);
}

/* Exchange for so many seconds, each time on a new connection or always on one. */
static void ask(const char *address, const char *port, int size, double seconds, int once)
{
    struct sockaddr_in end = endpoint(address, port);
    double began = now(), before = began, after;
    long count = 0, lost = 0;
    int fd = -1;

    while (before - began < seconds && lost < MOST_LOST) {
        if (fd < 0)
            fd = connection(&end);
        if (fd < 0 || !exchange(fd, size)) {
            lost++;
        } else if (count < MOST_TRIPS) {
            after = now();
            trips[count++] = after - before;
        }
        if (fd >= 0 && once) {
            close(fd);
            fd = -1;
        }
        before = now();
    }
    if (!count) {
        fprintf(stderr, "no answer from %s port %s\n", address, port);
        exit(1);
    }
    qsort(trips, count, sizeof *trips, compare);
    printf("{\"trips\": %ld, \"lost\": %ld, \"seconds\": %.6f, \"median_us\": %.1f, \"p99_us\": %.1f}\n", count, lost,
           before - began, trips[count / 2] * 1e6, trips[count * 99 / 100] * 1e6);
}

static void hold(const char *address, const char *port, int count)
{
    struct sockaddr_in end = endpoint(address, port);
    int fd;

    for (int i = 0; i < count; i++) {
        if ((fd = connection(&end)) < 0 || !exchange(fd, 1)) {
            fprintf(stderr, "connection %d of %d: ", i + 1, count);
            fail("no answer");
        }
    }
    be_ready();
    await_end_of_input();
}

int main(int count, char **words)
{
    struct rlimit limit;
    const char *mode = count > 2 ? words[1] : "";

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    memset(buffer, 'x', sizeof buffer);
    if (!strcmp(mode, "serve"))
        serve(words[2]);
    else if (!strcmp(mode, "sink"))
        sink(words[2]);
    else if (!strcmp(mode, "flood") && count == 5)
        flood(words[2], words[3], atof(words[4]));
    else if (!strcmp(mode, "connect") && count == 6)
        ask(words[2], words[3], atoi(words[4]), atof(words[5]), 1);
    else if (!strcmp(mode, "ask") && count == 6)
        ask(words[2], words[3], atoi(words[4]), atof(words[5]), 0);
    else if (!strcmp(mode, "hold") && count == 5)
        hold(words[2], words[3], atoi(words[4]));
    else
        return 2;
    return 0;
}
