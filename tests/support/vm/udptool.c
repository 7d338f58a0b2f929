/* What a guest needs to try out its network and busybox lacks: UDP of any size, with errors and header fields, and a
 * DHCPv6 client. It is linked statically, since the guest has no libraries.
 *
 *   udptool echo ADDR PORT                  send each datagram back, from the address it was sent to; says "ready"
 *   udptool ask ADDR PORT SIZE [BINDPORT]   send a pattern, expect it back: "ok SIZE", "refused", ERRNAME or "timeout"
 *   udptool ttl ADDR PORT TTL               send with this TTL; who complained: "exceeded ADDR", "refused ADDR" or
 *                                           "icmp TYPE CODE ADDR"; otherwise "answer" or "timeout"
 *   udptool ecn ADDR PORT                   send with ECT(0), print the answer's "tos NUMBER"
 *   udptool dhcp6 IFNAME                    SOLICIT and REQUEST; "address A", "resolver A", "search NAME", "status N"
 *
 * ADDR is numeric, of either family; a link-local one is written ADDR%IFNAME. The exit status is 0 for an answer, 1 for
 * none or an error, 2 for wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
/* Needs struct timespec from above. */
#include <linux/errqueue.h>

enum { PATIENCE_MS = 2000, LARGEST = 65535 };
enum { ECT0 = 2 };
enum { SOLICIT = 1, ADVERTISE = 2, REQUEST = 3, REPLY = 7 };
enum { CLIENT_ID = 1, SERVER_ID = 2, IA_NA = 3, IA_ADDRESS = 5, WANTED = 6, ELAPSED = 8, STATUS = 13, DNS = 23, SEARCH = 24 };

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static unsigned char sent[LARGEST], received[LARGEST + 1];

/* Say how it ended, and end. */
static void finish(int status, const char *what)
{
    puts(what);
    exit(status);
}

static void failed(void)
{
    finish(1, errno == ECONNREFUSED ? "refused" : strerrorname_np(errno));
}

static void check(int result)
{
    if (result < 0)
        failed();
}

static socklen_t parse(const char *text, const char *port, union address *out)
{
    char copy[INET6_ADDRSTRLEN + IF_NAMESIZE + 1], *scope;

    memset(out, 0, sizeof *out);
    snprintf(copy, sizeof copy, "%s", text);
    if ((scope = strchr(copy, '%')))
        *scope++ = '\0';
    if (inet_pton(AF_INET, copy, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons(atoi(port));
        return sizeof out->v4;
    }
    if (inet_pton(AF_INET6, copy, &out->v6.sin6_addr) != 1)
        finish(2, "not an address");
    out->v6.sin6_family = AF_INET6;
    out->v6.sin6_port = htons(atoi(port));
    out->v6.sin6_scope_id = scope ? if_nametoindex(scope) : 0;
    return sizeof out->v6;
}

static const char *text(int family, const void *address)
{
    static char buffer[INET6_ADDRSTRLEN];

    return inet_ntop(family, address, buffer, sizeof buffer);
}

static void set(int sock, int family, int v4, int v6, int value)
{
    if (family == AF_INET)
        check(setsockopt(sock, IPPROTO_IP, v4, &value, sizeof value));
    else
        check(setsockopt(sock, IPPROTO_IPV6, v6, &value, sizeof value));
}

/* A socket that is connected, so that the kernel reports errors to it. */
static int connected(const char *address, const char *port, const char *local_port, int *family)
{
    union address peer, local = {0};
    socklen_t length = parse(address, port, &peer);
    int sock = socket(peer.any.sa_family, SOCK_DGRAM, 0);

    check(sock);
    *family = local.any.sa_family = peer.any.sa_family;
    local.v4.sin_port = htons(local_port ? atoi(local_port) : 0); /* at the same place in both families */
    check(bind(sock, &local.any, length));
    check(connect(sock, &peer.any, length));
    return sock;
}

/* Wait for an event of a socket. */
static void await(int sock)
{
    struct pollfd one = {.fd = sock, .events = POLLIN};

    if (poll(&one, 1, PATIENCE_MS) == 0)
        finish(1, "timeout");
}

static void echo(const char *address, const char *port)
{
    union address own, peer;
    char control[256];
    socklen_t length = parse(address, port, &own);
    int sock = socket(own.any.sa_family, SOCK_DGRAM, 0), on = 1;

    check(sock);
    if (own.any.sa_family == AF_INET6)
        check(setsockopt(sock, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    set(sock, own.any.sa_family, IP_PKTINFO, IPV6_RECVPKTINFO, 1);
    check(bind(sock, &own.any, length));
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct iovec part = {received, sizeof received};
        struct msghdr message = {&peer, sizeof peer, &part, 1, control, sizeof control, 0};
        ssize_t size = recvmsg(sock, &message, 0);

        if (size < 0)
            continue; /* an ICMP error about an earlier answer */
        /* The control message that tells where it was sent to also says where the answer comes from. */
        part.iov_len = size;
        message.msg_flags = 0;
        if (sendmsg(sock, &message, 0) < 0)
            printf("%s\n", strerrorname_np(errno));
    }
}

static void ask(const char *address, const char *port, int size, const char *local_port)
{
    int family, sock = connected(address, port, local_port, &family);
    ssize_t got;

    for (int i = 0; i < size; i++)
        sent[i] = (i * 167) ^ (i >> 8); /* tells two halves of a datagram apart; pattern() in __init__.py */
    check(send(sock, sent, size, 0));
    await(sock);
    check(got = recv(sock, received, sizeof received, 0));
    if (got != size || memcmp(sent, received, size)) {
        printf("differs, %zd bytes\n", got);
        exit(1);
    }
    printf("ok %d\n", size);
}

static void ttl(const char *address, const char *port, int hops)
{
    int family, sock = connected(address, port, NULL, &family);
    char control[512];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};

    set(sock, family, IP_RECVERR, IPV6_RECVERR, 1);
    set(sock, family, IP_TTL, IPV6_UNICAST_HOPS, hops);
    check(send(sock, "ttl", 3, 0));
    await(sock);
    if (recvmsg(sock, &message, MSG_ERRQUEUE) < 0)
        finish(0, "answer");
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        struct sock_extended_err *error = (void *)CMSG_DATA(c);
        union address *offender = (void *)SO_EE_OFFENDER(error);
        int v4 = c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR;

        if (!v4 && !(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
            continue;
        if (error->ee_origin == SO_EE_ORIGIN_LOCAL)
            finish(1, strerrorname_np(error->ee_errno));
        if (error->ee_type == (v4 ? 11 : 3))
            printf("exceeded ");
        else if (error->ee_errno == ECONNREFUSED)
            printf("refused ");
        else
            printf("icmp %d %d ", error->ee_type, error->ee_code);
        finish(0, v4 ? text(AF_INET, &offender->v4.sin_addr) : text(AF_INET6, &offender->v6.sin6_addr));
    }
    finish(1, "error without origin");
}

static void ecn(const char *address, const char *port)
{
    int family, sock = connected(address, port, NULL, &family), tos = -1;
    char control[256];
    struct iovec part = {received, sizeof received};
    struct msghdr message = {NULL, 0, &part, 1, control, sizeof control, 0};

    set(sock, family, IP_TOS, IPV6_TCLASS, ECT0);
    set(sock, family, IP_RECVTOS, IPV6_RECVTCLASS, 1);
    check(send(sock, "ecn", 3, 0));
    await(sock);
    check(recvmsg(sock, &message, 0));
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS)
            tos = *CMSG_DATA(c); /* one byte there, four below */
        else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS)
            memcpy(&tos, CMSG_DATA(c), sizeof tos);
    }
    printf("tos %d\n", tos);
}

/* DHCPv6, RFC 8415: options are a 16-bit code, a 16-bit length and the value. */

static unsigned char *put(unsigned char *at, int code, const void *value, int length)
{
    at[0] = code >> 8, at[1] = code, at[2] = length >> 8, at[3] = length;
    memcpy(at + 4, value, length);
    return at + 4 + length;
}

static unsigned char *find(unsigned char *at, unsigned char *end, int code, int *length)
{
    while (end - at >= 4) {
        *length = at[2] << 8 | at[3];
        if (*length > end - at - 4)
            finish(1, "malformed");
        if ((at[0] << 8 | at[1]) == code)
            return at + 4;
        at += 4 + *length;
    }
    return NULL;
}

/* Send a message and give the end of the answer to it, which is in `received`. */
static unsigned char *exchange(int sock, union address *to, unsigned char *end, int expected)
{
    ssize_t size;

    check(sendto(sock, sent, end - sent, 0, &to->any, sizeof to->v6));
    do {
        await(sock);
        check(size = recv(sock, received, sizeof received, 0));
    } while (size < 4 || memcmp(received + 1, sent + 1, 3));
    if (received[0] != expected) {
        printf("message %d instead of %d\n", received[0], expected);
        exit(1);
    }
    return received + size;
}

static void print_names(unsigned char *at, unsigned char *end)
{
    while (at < end) {
        printf("search ");
        for (; at < end && *at && *at < end - at; at += 1 + *at)
            printf("%.*s%s", *at, at + 1, at[1 + *at] ? "." : "");
        printf("\n");
        at++;
    }
}

static void dhcp6(const char *name)
{
    /* DUID of type 3, link-layer address, with hardware type 1, Ethernet. */
    unsigned char duid[10] = {0, 3, 0, 1}, association[12] = "vm01", elapsed[2] = {0}, wanted[4] = {0, DNS, 0, SEARCH};
    unsigned char *end, *at, *inner;
    union address own, servers;
    struct ifreq request = {0};
    int length, size, sock = socket(AF_INET6, SOCK_DGRAM, 0);

    check(sock);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    check(ioctl(sock, SIOCGIFHWADDR, &request));
    memcpy(duid + 4, request.ifr_hwaddr.sa_data, 6);
    parse("::", "546", &own);
    parse("ff02::1:2", "547", &servers);
    servers.v6.sin6_scope_id = if_nametoindex(name);
    check(bind(sock, &own.any, sizeof own.v6));

    memcpy(sent, (unsigned char[]){SOLICIT, 'v', 'm', '1'}, 4);
    end = put(sent + 4, CLIENT_ID, duid, sizeof duid);
    end = put(end, IA_NA, association, sizeof association);
    end = put(end, ELAPSED, elapsed, sizeof elapsed);
    end = put(end, WANTED, wanted, sizeof wanted);
    end = exchange(sock, &servers, end, ADVERTISE);

    unsigned char *server = find(received + 4, end, SERVER_ID, &length);
    unsigned char *offer = find(received + 4, end, IA_NA, &size);
    if (!server || !offer)
        finish(1, "incomplete offer");
    memcpy(sent, (unsigned char[]){REQUEST, 'v', 'm', '2'}, 4);
    at = put(sent + 4, CLIENT_ID, duid, sizeof duid);
    at = put(at, SERVER_ID, server, length);
    at = put(at, IA_NA, offer, size);
    at = put(at, ELAPSED, elapsed, sizeof elapsed);
    at = put(at, WANTED, wanted, sizeof wanted);
    end = exchange(sock, &servers, at, REPLY);

    at = find(received + 4, end, CLIENT_ID, &length);
    if (!at || length != sizeof duid || memcmp(at, duid, length))
        finish(1, "not for this client");
    at = find(received + 4, end, IA_NA, &size);
    if (!at || size < 12 || memcmp(at, association, 4))
        finish(1, "no such association");
    if ((inner = find(at + 12, at + size, STATUS, &length)))
        printf("status %d\n", inner[0] << 8 | inner[1]);
    if ((inner = find(at + 12, at + size, IA_ADDRESS, &length)))
        printf("address %s\n", text(AF_INET6, inner));
    if ((at = find(received + 4, end, DNS, &length)))
        for (; length >= 16; length -= 16, at += 16)
            printf("resolver %s\n", text(AF_INET6, at));
    if ((at = find(received + 4, end, SEARCH, &length)))
        print_names(at, at + length);
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "";

    if (!strcmp(mode, "echo") && count == 4)
        echo(words[2], words[3]);
    else if (!strcmp(mode, "ask") && (count == 5 || count == 6))
        ask(words[2], words[3], atoi(words[4]), words[5]);
    else if (!strcmp(mode, "ttl") && count == 5)
        ttl(words[2], words[3], atoi(words[4]));
    else if (!strcmp(mode, "ecn") && count == 4)
        ecn(words[2], words[3]);
    else if (!strcmp(mode, "dhcp6") && count == 3)
        dhcp6(words[2]);
    else
        finish(2, "usage: udptool echo|ask|ttl|ecn|dhcp6 ...");
    return 0;
}
