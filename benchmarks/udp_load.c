/* The ends of the UDP loads of many ports: each mode is one program run.
 *
 *   udp_load flood ADDRESS PORT SIZE SECONDS PORTS RATE    send from so many ports in turn; prints what was sent
 *   udp_load receive ADDRESS PORT                          count what comes until end of input; prints it
 *   udp_load answer ADDRESS PORT SIZE SECONDS PORTS RATE   flood in turn so many ports, each of which sends once before
 *   udp_load listen ADDRESS PORT PORTS                     send once from so many ports, and count what comes to them
 *
 * RATE is in datagrams a second over all ports; 0 is as fast as it goes.
 *
 * Theory of operation: each port is a connected socket, and takes one datagram before the next one's turn, so that no
 * two datagrams that follow each other can be joined. All ports are known on the way before the clock starts: each
 * sends once, slowly enough that none is lost for being new; then what floods prints "warm" and awaits a line. A paced
 * flood sends a burst, and sleeps until the next is due; so the receiver and what is measured have the processor
 * meanwhile. A datagram that the kernel does not take counts as not sent. What answers is one socket that prints "ready"
 * before it is asked, and floods the ports that have asked it; they listen from then on.
 *
 * A receiver prints "ready" when it can, counts from nothing after a line, which it answers with "zeroed", and prints
 * the time between the first and the last datagrams: what was in a queue when the flood ended has its time then, too.
 */

#define _GNU_SOURCE
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "load.h"

enum {
    BATCH = 64,          /* datagrams of one receive, and sends between two looks at the clock */
    LARGEST = 65536,     /* bytes of a datagram */
    MOST_PORTS = 60000,
    RING = 16 << 20,     /* bytes of the receiver's socket buffer */
    WARM_AT_ONCE = 32,
    MOST_MS = 3000,      /* to wait for another port to ask */
};
static const double WARM_PAUSE = 0.005, SETTLE = 0.3; /* seconds */

static char data[LARGEST];
static int ports[MOST_PORTS];
static struct sockaddr_storage askers[MOST_PORTS];
static struct mmsghdr batch[BATCH];

static struct addrinfo *address_of(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM}, *found;

    if (getaddrinfo(host, port, &hints, &found)) {
        fprintf(stderr, "%s, %s: no address and port\n", host, port);
        exit(2);
    }
    return found;
}

static int bound(const struct addrinfo *at)
{
    int fd = socket(at->ai_family, SOCK_DGRAM, 0), ring = RING;

    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &ring, sizeof ring) || bind(fd, at->ai_addr, at->ai_addrlen))
        fail("bind");
    return fd;
}

/* Open so many ports, and let each send once. */
static void open_ports(const struct addrinfo *to, int size, int count)
{
    for (int i = 0; i < count; i++) {
        if ((ports[i] = socket(to->ai_family, SOCK_DGRAM, 0)) < 0 || connect(ports[i], to->ai_addr, to->ai_addrlen))
            fail("socket");
        if (send(ports[i], data, size, 0) < 0)
            fail("send");
        if (i % WARM_AT_ONCE == WARM_AT_ONCE - 1)
            sleep_until(now() + WARM_PAUSE);
    }
    sleep_until(now() + SETTLE);
}

/* Collect the addresses of the ports that ask; return how many did. */
static int collect(int fd, int count)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    socklen_t length;
    int found = 0;

    while (found < count && poll(&readable, 1, MOST_MS) > 0) {
        length = sizeof *askers;
        found += recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&askers[found], &length) >= 0;
    }
    return found;
}

/* Prepare a batch: the same bytes for each, and to an address or into nothing. */
static void prepare(struct iovec *part)
{
    memset(batch, 0, sizeof batch);
    for (int i = 0; i < BATCH; i++)
        batch[i].msg_hdr = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
}

static int send_from_ports(long from, int count, int size)
{
    int sent = 0;

    for (long i = from; i < from + BATCH; i++)
        sent += send(ports[i % count], data, size, MSG_DONTWAIT) == size;
    return sent;
}

static int send_answers(int fd, long from, int count)
{
    int sent;

    for (int i = 0; i < BATCH; i++) {
        batch[i].msg_hdr.msg_name = &askers[(from + i) % count];
        batch[i].msg_hdr.msg_namelen = sizeof *askers;
    }
    sent = sendmmsg(fd, batch, BATCH, MSG_DONTWAIT);
    return sent < 0 ? 0 : sent;
}

/* Send for so many seconds: from the ports, or from a socket to those that asked. */
static void flood(int fd, int size, double seconds, int count, double rate)
{
    struct iovec part = {data, size};
    double began, time;
    long sent = 0, tried = 0;

    prepare(&part);
    say("warm");
    await_word();
    for (began = time = now(); time - began < seconds; time = now(), tried += BATCH) {
        sent += fd < 0 ? send_from_ports(tried, count, size) : send_answers(fd, tried, count);
        if (rate > 0)
            sleep_until(began + tried / rate);
    }
    printf("{\"sent\": %ld, \"seconds\": %.6f}\n", sent, time - began);
}

/* Count what comes to so many sockets. */
static void receive(const int *fds, int count)
{
    struct iovec part = {data, sizeof data}; /* all datagrams in one place: nobody looks at them */
    struct epoll_event events[BATCH], event = {.events = EPOLLIN};
    int poller = epoll_create1(0), ready, came;
    double first = 0, last = 0;
    long received = 0;
    char word;

    prepare(&part);
    for (int i = -1; i < count; i++) {
        event.data.fd = i < 0 ? STDIN_FILENO : fds[i];
        if (epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event))
            fail("epoll_ctl");
    }
    say("ready");
    for (;;) {
        ready = epoll_wait(poller, events, BATCH, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == STDIN_FILENO) {
                if (read(STDIN_FILENO, &word, 1) < 1) {
                    printf("{\"received\": %ld, \"seconds\": %.6f}\n", received, last - first);
                    return;
                }
                if (word == '\n') {
                    received = 0;
                    say("zeroed");
                }
                continue;
            }
            do {
                if ((came = recvmmsg(events[i].data.fd, batch, BATCH, MSG_DONTWAIT, NULL)) < 1)
                    break;
                last = now();
                if (!received)
                    first = last;
                received += came;
            } while (came == BATCH);
        }
    }
}

int main(int words, char **word)
{
    const char *mode = words > 3 ? word[1] : "";
    const struct addrinfo *address = words > 3 ? address_of(word[2], word[3]) : NULL;
    int answers = !strcmp(mode, "answer"), size, count, fd = -1;

    use_all_descriptors();
    if ((answers || !strcmp(mode, "flood")) && words == 8) {
        size = atoi(word[4]);
        count = atoi(word[6]);
        if (size < 1 || size > LARGEST || count < 1 || count > MOST_PORTS)
            return 2;
        if (answers) {
            fd = bound(address);
            say("ready");
            count = collect(fd, count);
        } else {
            open_ports(address, size, count);
        }
        if (!count) {
            fputs("nobody asked\n", stderr);
            return 1;
        }
        flood(fd, size, atof(word[5]), count, atof(word[7]));
    } else if (!strcmp(mode, "listen") && words == 5) {
        count = atoi(word[4]);
        if (count < 1 || count > MOST_PORTS)
            return 2;
        open_ports(address, 1, count);
        receive(ports, count);
    } else if (!strcmp(mode, "receive") && words == 4) {
        fd = bound(address);
        receive(&fd, 1);
    } else {
        return 2;
    }
    return 0;
}
