/* A scripted guest on passt's UNIX socket: frames behind their lengths, and one TCP connection of its own.
 *
 *   tcp_guest PATH MTU send PORT SECONDS    connect to the gateway, write as fast as it goes, end the stream
 *   tcp_guest PATH MTU receive PORT         accept one connection, read it to its end; prints "ready" when it can
 *
 * Either prints its figures as one line of JSON.
 *
 * Theory of operation: enough TCP (RFC 9293) for one stream in one direction on a link that loses nothing, and cheap, so
 * that the proxy and not the guest is measured. All frames carry real checksums, and no checksum that comes is looked
 * at, as if the guest's network card had done it. Full segments stand in one buffer with their payload, so that a batch
 * of them needs new headers only, and leaves in one call. The sum of a full payload is known.
 *
 * The sender keeps to the peer's window and to a congestion window (slow start, one segment a round trip, half after a
 * loss: RFC 5681). The third duplicate acknowledgement or the timer (200 ms at least, as Linux has it) returns to the
 * first byte that is not acknowledged. The receiver offers 4 MiB, takes what is in order, and acknowledges once for each
 * read of the socket. It keeps nothing that is out of order, since nothing should be.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    LINK = 18, /* bytes before the IPv4 header: length of the frame, Ethernet */
    HEADERS = LINK + 40,
    BATCH = 128 << 10,      /* bytes of frames in one write */
    INPUT = 1 << 20,        /* bytes of one read, with what was left of the last */
    WINDOW = 4 << 20,       /* bytes that are offered */
    SHIFT = 7,              /* of the window */
    INITIAL_SEGMENTS = 10,  /* RFC 6928 */
    DUPLICATES = 3,         /* RFC 5681 */
    MOST_TRIES = 8,
    OWN_PORT = 40000,
    SEQUENCE = 0x10000000,
    MOST_CONGESTION = 1 << 30, /* bytes, the largest window (RFC 7323) */
};
static const double TIMEOUT = 0.2;
static const uint32_t GUEST = 0xC0000202, GATEWAY = 0xC0000201; /* 192.0.2.2, 192.0.2.1 */
static const uint8_t MAC[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum state { CLOSED, LISTENING, SYN_SENT, SYN_RECEIVED, ESTABLISHED };

static int link_fd;
static uint8_t input[INPUT], output[BATCH + (1 << 17)], gateway_mac[6];
static size_t kept, output_from, output_to; /* bytes of input that are no whole frame yet; what of output is due */
static size_t segments_ready;               /* full segments in output that hold their payload */
static int gateway_known;

static enum state state;
static uint32_t peer, una, next, most, expected; /* peer's address; send and receive sequence numbers */
static uint16_t port, peer_port;
static uint32_t window, shift, segment, congestion, threshold, recover;
static int duplicates, recovering, acknowledge, tries;
static int finishing, ending, end_came; /* no new data; the end of the stream is due; the peer's end came */
static double deadline; /* of retransmission; 0: none */
static uint32_t payload_sum;
static uint64_t moved, acknowledged, retransmitted, disordered;
static double first, last;

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

static void put16(uint8_t *at, uint16_t value)
{
    value = htons(value);
    memcpy(at, &value, 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, 4);
}

static uint16_t get16(const uint8_t *at)
{
    return at[0] << 8 | at[1];
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void give_up(const char *why)
{
    fprintf(stderr, "tcp_guest: %s\n", why);
    exit(1);
}

/* Return the folded sum of 16-bit words; an odd last byte is followed by zero (RFC 1071). */
static uint32_t sum(const uint8_t *data, size_t size, uint64_t start)
{
    size_t i;

    for (i = 0; i + 1 < size; i += 2)
        start += get16(data + i);
    if (i < size)
        start += data[i] << 8;
    while (start >> 16)
        start = (start & 0xFFFF) + (start >> 16);
    return start;
}

static void put_ethernet(uint8_t *frame, size_t packet, uint16_t type, const uint8_t *to)
{
    put32(frame, LINK - 4 + packet);
    memcpy(frame + 4, to, 6);
    memcpy(frame + 10, MAC, 6);
    put16(frame + 16, type);
}

/* Write the headers of a segment, whose payload or options are in place, with both checksums.
 *
 * payload_total: the sum of what follows the 20 bytes of the TCP header. */
static void put_headers(uint8_t *frame, int flags, uint32_t sequence, size_t options, size_t size, uint32_t payload_total)
{
    uint8_t *ip = frame + LINK, *tcp = ip + 20;
    size_t length = 20 + options + size;
    uint32_t offered = flags & SYN ? 65535 : WINDOW >> SHIFT;

    put_ethernet(frame, 20 + length, 0x0800, gateway_mac);
    memcpy(ip, "\x45\0\0\0\0\0\x40\0\x40\x06\0\0", 12);
    put16(ip + 2, 20 + length);
    put32(ip + 12, GUEST);
    put32(ip + 16, peer);
    put16(ip + 10, ~sum(ip, 20, 0));
    put16(tcp, port);
    put16(tcp + 2, peer_port);
    put32(tcp + 4, sequence);
    put32(tcp + 8, flags & ACK ? expected : 0);
    tcp[12] = (20 + options) / 4 << 4;
    tcp[13] = flags;
    put16(tcp + 14, offered);
    put32(tcp + 16, 0);
    put16(tcp + 16, ~sum(tcp, 20, sum(ip + 12, 8, 6 + length + payload_total)));
}

/* Append a segment without data. */
static void put_control(int flags, uint32_t sequence)
{
    uint8_t *frame = output + output_to;
    size_t options = 0;

    segments_ready = 0;
    if (flags & SYN) {
        memcpy(frame + HEADERS, "\x02\x04\0\0\x01\x03\x03", 7);
        put16(frame + HEADERS + 2, segment);
        frame[HEADERS + 7] = SHIFT;
        options = 8;
    }
    put_headers(frame, flags, sequence, options, 0, sum(frame + HEADERS, options, 0));
    output_to += HEADERS + options;
    acknowledge = 0;
}

static void put_arp(int operation, const uint8_t *mac, uint32_t address)
{
    uint8_t *frame = output + output_to, *arp = frame + LINK;

    segments_ready = 0;
    put_ethernet(frame, 28, 0x0806, operation == 1 ? (const uint8_t *)"\xff\xff\xff\xff\xff\xff" : mac);
    memcpy(arp, "\0\x01\x08\0\x06\x04\0", 7);
    arp[7] = operation;
    memcpy(arp + 8, MAC, 6);
    put32(arp + 14, GUEST);
    memcpy(arp + 18, mac, 6);
    put32(arp + 24, address);
    output_to += LINK + 28;
}

static void set_timer(void)
{
    deadline = una == most && state == ESTABLISHED && window ? 0 : now() + TIMEOUT * (1 << tries);
}

/* Return to the first byte that is not acknowledged. */
static void rewind_to_una(uint32_t congestion_after)
{
    uint32_t half = (most - una) / 2;

    threshold = half > 2 * segment ? half : 2 * segment;
    congestion = congestion_after ? congestion_after : threshold;
    next = una;
    recover = most;
    recovering = 1;
    duplicates = 0;
}

static void take_acknowledgement(uint32_t number, uint32_t offered, int pure)
{
    if ((int32_t)(number - una) > 0 && (int32_t)(most - number) >= 0) {
        uint32_t count = number - una;

        una = number;
        acknowledged += count;
        if ((int32_t)(next - una) < 0)
            next = una;
        congestion += congestion < threshold ? count : (uint64_t)segment * count / congestion + 1;
        if (congestion > MOST_CONGESTION)
            congestion = MOST_CONGESTION;
        if ((int32_t)(una - recover) >= 0)
            recovering = 0;
        duplicates = tries = 0;
        window = offered;
        set_timer();
    } else if (number == una) {
        if (pure && offered == window && una != most && ++duplicates == DUPLICATES && !recovering)
            rewind_to_una(0);
        if (!window && offered) {
            tries = 0;
            window = offered;
            set_timer();
        }
        window = offered;
    }
}

static void take_segment(const uint8_t *ip, size_t length)
{
    size_t header = (ip[0] & 15) * 4;
    const uint8_t *tcp = ip + header;
    size_t offset = (tcp[12] >> 4) * 4, size = length - header - offset;
    uint32_t sequence = get32(tcp + 4), number = get32(tcp + 8), offered = get16(tcp + 14);
    int flags = tcp[13];

    if (get16(tcp + 2) != port || (state != LISTENING && (get32(ip + 12) != peer || get16(tcp) != peer_port)))
        return;
    if (flags & RST)
        give_up("the connection was reset");
    if (flags & SYN) {
        if (state == LISTENING) {
            peer = get32(ip + 12);
            peer_port = get16(tcp);
        } else if (state == SYN_SENT && flags & ACK && number == SEQUENCE + 1) {
            una = number;
        } else if (state != SYN_RECEIVED) {
            acknowledge = 1;
            return;
        }
        for (size_t at = 20; at + 1 < offset && tcp[at]; at += tcp[at] == 1 || tcp[at + 1] < 2 ? 1 : tcp[at + 1]) {
            if (tcp[at] == 2 && get16(tcp + at + 2) < segment)
                segment = get16(tcp + at + 2);
            if (tcp[at] == 3)
                shift = tcp[at + 2];
        }
        expected = sequence + 1;
        window = offered;
        congestion = INITIAL_SEGMENTS * segment;
        if (state == SYN_SENT) {
            state = ESTABLISHED;
            deadline = tries = 0;
            put_control(ACK, next); /* bare, as a kernel's: some proxies take no data with it */
        } else {
            state = SYN_RECEIVED;
            put_control(SYN | ACK, SEQUENCE);
        }
        return;
    }
    if (!(flags & ACK))
        return;
    if (state == SYN_RECEIVED && number == SEQUENCE + 1) {
        state = ESTABLISHED;
        una = number;
    }
    if (state != ESTABLISHED)
        return;
    take_acknowledgement(number, offered << shift, !size && !(flags & FIN));
    if (sequence != expected && (size || flags & FIN || (int32_t)(sequence - expected) < 0)) {
        acknowledge = 1;
        if ((int32_t)(sequence - expected) > 0 || (int32_t)(sequence + size - expected) <= 0) {
            disordered++;
            return;
        }
        size -= expected - sequence;
        sequence = expected;
    }
    if (size) {
        last = now();
        if (!moved)
            first = last;
        moved += size;
        expected += size;
        acknowledge = 1;
    }
    if (flags & FIN && !end_came) {
        expected++;
        end_came = acknowledge = 1;
    }
}

static void take_frame(const uint8_t *frame, size_t size)
{
    const uint8_t *body = frame + 14;
    uint16_t type = get16(frame + 12);

    if (type == 0x0806 && size >= 42) {
        if (get16(body + 6) == 1 && get32(body + 24) == GUEST)
            put_arp(2, body + 8, get32(body + 14));
        if (get16(body + 6) == 2 && get32(body + 14) == GATEWAY) {
            memcpy(gateway_mac, body + 8, 6);
            gateway_known = 1;
        }
    } else if (type == 0x0800 && size >= 54 && body[9] == 6) {
        take_segment(body, get16(body + 2));
    }
}

static void read_frames(void)
{
    ssize_t came = recv(link_fd, input + kept, sizeof input - kept, MSG_DONTWAIT);
    size_t at = 0, size;

    if (came < 0 && errno == EAGAIN)
        return;
    if (came <= 0)
        fail("the proxy closed the connection");
    kept += came;
    while (kept - at >= 4 && kept - at - 4 >= (size = get32(input + at))) {
        take_frame(input + at + 4, size);
        at += 4 + size;
    }
    memmove(input, input + at, kept -= at);
}

/* Fill the output with what the windows allow. */
static void put_data(void)
{
    size_t whole = HEADERS + segment, count = 0, most_frames = BATCH / whole ? BATCH / whole : 1;
    uint32_t allowed = window < congestion ? window : congestion, flight = next - una;
    uint32_t room = allowed > flight ? allowed - flight : 0;

    if (finishing && room > most - next)
        room = most - next;
    if (!segments_ready) {
        for (size_t i = 0; i < most_frames; i++)
            for (size_t j = 0; j < segment; j++)
                output[i * whole + HEADERS + j] = j * 31;
        segments_ready = most_frames;
        payload_sum = sum(output + HEADERS, segment, 0);
    }
    for (; count < most_frames && room >= segment; count++, room -= segment) {
        if ((int32_t)(next - most) < 0)
            retransmitted += segment;
        put_headers(output + count * whole, ACK | (room < 2 * segment ? PSH : 0), next, 0, segment, payload_sum);
        next += segment;
        output_to += whole;
    }
    if (!count && room && una == next && room < segment) { /* a window that is less than a segment */
        put_headers(output, ACK | PSH, next, 0, room, sum(output + HEADERS, room, 0));
        next += room;
        output_to += HEADERS + room;
    }
    if (output_to)
        acknowledge = 0;
    if ((int32_t)(next - most) > 0)
        most = next;
    if (output_to && !deadline)
        set_timer();
}

static void on_timer(void)
{
    if (++tries > MOST_TRIES)
        give_up("no answer from the proxy");
    if (state == SYN_SENT) {
        put_control(SYN, SEQUENCE);
    } else if (state == ESTABLISHED && !window) {
        put_headers(output, ACK, una, 0, 1, sum(output + HEADERS, 1, 0)); /* probe; segment contents are in place */
        output_to = HEADERS + 1;
        if (most == una)
            most = next = una + 1;
    } else if (state == ESTABLISHED) {
        rewind_to_una(segment);
    }
    set_timer();
}

/* Move frames until `done` holds, or the time is over (0: never); `sending`: fill the windows meanwhile. */
static void run(int (*done)(void), double until, int sending)
{
    struct pollfd ready = {.fd = link_fd};
    double time, end;
    ssize_t size;

    while (!done() && (!until || now() < until)) {
        if (output_from == output_to) {
            output_from = output_to = 0;
            if (deadline && now() >= deadline)
                on_timer();
            if (!output_to && sending && state == ESTABLISHED)
                put_data();
            if (!output_to && ending && una == most) {
                put_control(FIN | ACK, next);
                most = ++next;
                ending = 0;
            } else if (!output_to && acknowledge)
                put_control(ACK, next);
        }
        if (output_from < output_to) {
            size = send(link_fd, output + output_from, output_to - output_from, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (size < 0 && errno != EAGAIN)
                fail("send");
            output_from += size > 0 ? size : 0;
        }
        ready.events = POLLIN | (output_from < output_to || (output_to && sending) ? POLLOUT : 0);
        time = now();
        end = deadline && (!until || deadline < until) ? deadline : until;
        if (poll(&ready, 1, end ? (end > time ? (end - time) * 1e3 + 1 : 0) : -1) > 0 && ready.revents & POLLIN)
            read_frames();
    }
}

static int gateway_answered(void)
{
    return gateway_known;
}

static int never(void)
{
    return 0;
}

static int all_acknowledged(void)
{
    return una == most;
}

static int stream_ended(void)
{
    return end_came;
}

int main(int count, char **words)
{
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    double began, seconds;

    if (count < 5)
        return 2;
    link_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(path.sun_path, words[1], sizeof path.sun_path - 1);
    if (connect(link_fd, (struct sockaddr *)&path, sizeof path))
        fail(words[1]);
    segment = atoi(words[2]) - 40;
    threshold = UINT32_MAX;
    una = next = most = recover = SEQUENCE + 1;
    put_arp(1, MAC, GATEWAY);
    run(gateway_answered, now() + 5, 0);
    if (!gateway_known)
        give_up("no answer from the gateway");
    if (!strcmp(words[3], "send") && count == 6) {
        seconds = atof(words[5]);
        port = OWN_PORT;
        peer = GATEWAY;
        peer_port = atoi(words[4]);
        state = SYN_SENT;
        put_control(SYN, SEQUENCE);
        set_timer();
        began = now();
        run(never, began + seconds, 1);
        if (state != ESTABLISHED)
            give_up("no connection");
        finishing = 1;
        run(all_acknowledged, now() + 10, 1);
        seconds = now() - began;
        ending = 1;
        run(stream_ended, now() + 2, 0);
        printf("{\"sent\": %llu, \"seconds\": %.6f, \"retransmitted\": %llu, \"segment\": %u}\n",
               (unsigned long long)acknowledged, seconds, (unsigned long long)retransmitted, segment);
        return 0;
    }
    port = atoi(words[4]);
    state = LISTENING;
    puts("ready");
    fflush(stdout);
    run(stream_ended, 0, 0);
    printf("{\"received\": %llu, \"seconds\": %.6f, \"disordered\": %llu, \"segment\": %u}\n",
           (unsigned long long)moved, last - first, (unsigned long long)disordered, segment);
    ending = 1;
    run(never, now() + 0.2, 0);
    return 0;
}
