/* The ends of the UDP loads of many ports: each mode is one program run.
 *
 *   udp_load flood ADDRESS PORT SIZE SECONDS PORTS RATE    send from so many ports in turn; prints what was sent
 *   udp_load receive ADDRESS PORT                          count what comes until end of input; prints it
 *
 * RATE is in datagrams a second over all ports; 0 is as fast as it goes.
 *
 * Theory of operation: each port is a connected socket, and takes one datagram before the next one's turn, so that no
 * two datagrams that follow each other can be joined. All ports are known on the way before the clock starts: each
 * sends once, slowly enough that none is lost for being new; then the program prints "warm" and awaits a line. A paced
 * flood sends a burst, and sleeps until the next is due; so the receiver and what is measured have the processor
 * meanwhile. A datagram that the kernel does not take counts as not sent.
 *
 * The receiver prints "ready" when it can, counts from nothing after a line, which it answers with "zeroed", and prints
 * the time between the first and the last datagrams: what was in a queue when the flood ended has its time then, too.
 */

#define _GNU_SOURCE
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "load.h"

enum {
    BATCH = 64,          /* datagrams of one receive, and sends between two looks at the clock */
    LARGEST = 65536,     /* bytes of a datagram */
    MOST_PORTS = 60000,
    RING = 16 << 20,     /* bytes of the receiver's socket buffer */
    WARM_AT_ONCE = 32,
};
static const double WARM_PAUSE = 0.005, SETTLE = 0.3; /* seconds */

static char data[LARGEST];
static int ports[MOST_PORTS];

static struct addrinfo *address_of(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM}, *found;

    if (getaddrinfo(host, port, &hints, &found)) {
        fprintf(stderr, "%s, %s: no address and port\n", host, port);
        exit(2);
    }
    return found;
}

static void flood(const struct addrinfo *to, int size, double seconds, int count, double rate)
{
    double began, time;
    long sent = 0, tried = 0;

    for (int i = 0; i < count; i++) {
        if ((ports[i] = socket(to->ai_family, SOCK_DGRAM, 0)) < 0 || connect(ports[i], to->ai_addr, to->ai_addrlen))
            fail("socket");
        if (send(ports[i], data, size, 0) < 0)
            fail("send");
        if (i % WARM_AT_ONCE == WARM_AT_ONCE - 1)
            sleep_until(now() + WARM_PAUSE);
    }
    sleep_until(now() + SETTLE);
    say("warm");
    await_word();
    for (began = time = now(); time - began < seconds; time = now()) {
        for (int i = 0; i < BATCH; i++)
            sent += send(ports[tried++ % count], data, size, MSG_DONTWAIT) == size;
        if (rate > 0)
            sleep_until(began + tried / rate);
    }
    printf("{\"sent\": %ld, \"seconds\": %.6f}\n", sent, time - began);
}

static void receive(const struct addrinfo *at)
{
    struct iovec part = {data, sizeof data}; /* all datagrams in one place: nobody looks at them */
    struct mmsghdr messages[BATCH];
    struct pollfd either[] = {{.events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    int fd = socket(at->ai_family, SOCK_DGRAM, 0), ring = RING, came;
    double first = 0, last = 0;
    long received = 0;
    char word;

    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &ring, sizeof ring) || bind(fd, at->ai_addr, at->ai_addrlen))
        fail("bind");
    either[0].fd = fd;
    say("ready");
    for (;;) {
        poll(either, 2, -1);
        while ((came = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL)) > 0) {
            last = now();
            if (!received)
                first = last;
            received += came;
        }
        if (!either[1].revents)
            continue;
        if (read(STDIN_FILENO, &word, 1) < 1)
            break;
        if (word == '\n') {
            received = 0;
            say("zeroed");
        }
    }
    printf("{\"received\": %ld, \"seconds\": %.6f}\n", received, last - first);
}

int main(int words, char **word)
{
    const char *mode = words > 3 ? word[1] : "";

    use_all_descriptors();
    if (!strcmp(mode, "flood") && words == 8 && atoi(word[6]) > 0 && atoi(word[6]) <= MOST_PORTS)
        flood(address_of(word[2], word[3]), atoi(word[4]), atof(word[5]), atoi(word[6]), atof(word[7]));
    else if (!strcmp(mode, "receive") && words == 4)
        receive(address_of(word[2], word[3]));
    else
        return 2;
    return 0;
}
