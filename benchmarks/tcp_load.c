/* The ends of the TCP loads: each mode is one program run.
 *
 *   tcp_load serve PORT...                  echo everything, until end of input
 *   tcp_load sink END [STREAMS]             read streams to their ends; prints what came, and the longest pause
 *   tcp_load flood END SECONDS [STREAMS]    write as fast as it goes, then end the streams; prints what was written
 *   tcp_load connect END SIZE SECONDS [AT_ONCE [RATE]]
 *                                           connect, exchange, close, again; prints the rounds
 *   tcp_load ask END SIZE SECONDS           exchange on one connection, again; prints the round trips
 *   tcp_load crowd END SIZE SECONDS COUNT   exchange on so many connections at once, again on each; prints the round trips
 *   tcp_load hold END COUNT                 open so many, exchange a byte on each, keep them until end of input
 *   tcp_load give END SIZE COUNT AT_ONCE FIFO
 *                                           write SIZE bytes on a new connection, close at once, again
 *   tcp_load take END SIZE COUNT AT_ONCE FIFO
 *                                           the other end of give: prints what was whole, and how the rest failed
 *
 * END is PORT to listen on, or ADDRESS:PORT to connect to; with ADDRESS:PORT,PORT connections take the ports in turn,
 * since a closed one keeps its source port from others to the same port for a minute. RATE is in connections a second;
 * without one, each follows the end of another.
 *
 * Theory of operation: IPv4 only, one thread for each stream or connection at once, but one for a whole crowd; blocking
 * calls, and nothing between two of them that a proxy could hide behind. What listens prints "ready" when it does, and a
 * crowd "warm" when each connection has had an exchange; then it awaits a line. Figures are one line of JSON. A pause is
 * the time between two receives of the sink, so the wait for the first byte and for the end of the stream do not count.
 * A transfer begins with its number, and that number decides which bytes follow, so that the receiver can
 * compare every byte. Whole is a transfer with all of them, no more, a number that came once, and an orderly end. The
 * giver is done before its bytes have gone anywhere. So the taker writes a byte to the FIFO when a transfer ends, and
 * the giver has no more than AT_ONCE on the way; else closed sockets with all their bytes would pile up in the kernel.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "load.h"

enum {
    BUFFER = 256 << 10,       /* bytes of one read or write of a stream */
    MOST_LOST = 20,           /* after which a load is given up */
    MOST_THREADS = 256,
    MOST_PORTS = 16,
    MOST_SIZE = 1 << 20,      /* bytes of a transfer */
    MOST_TRANSFERS = 1 << 20, /* of one run */
    STRIDE = 4099,            /* bytes between the contents of two transfers */
    ANSWER_SECONDS = 2,       /* to wait for an answer */
    STALL_SECONDS = 10,       /* to wait for a connection, or for a stream to go on */
    DRAIN_SECONDS = 20,       /* to wait for the end of what was written */
    BACKLOG = 4096,
    EVENTS = 64,
};

static _Thread_local char buffer[BUFFER];
static char contents[2 * MOST_SIZE];
static char seen[MOST_TRANSFERS];

/* What all threads work at. */
static struct sockaddr_in ends[MOST_PORTS];
static int number_of_ends;
static int listening = -1; /* else they connect */
static int size, once, fifo, most_at_once;
static long count;
static double seconds, rate, began;

/* What they did, under the lock unless it is atomic. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_long turn, answered, lost;
static atomic_uint connects;
static unsigned long long moved;
static double first, last, longest;
static int broken_streams;
static struct {
    long whole, too_short, too_long, different, broken;
} transfers;

static void set(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value))
        fail("setsockopt");
}

/* Bound every blocking call on a socket. */
static void limit(int fd, int most_seconds)
{
    struct timeval time = {.tv_sec = most_seconds};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

static int listener(const char *port)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, BACKLOG))
        fail("listen");
    return fd;
}

/* Take the END of the command line: the port to listen on, or where to connect to. */
static void use(char *word)
{
    char *port = strchr(word, ':');
    struct in_addr address;

    if (!port) {
        listening = listener(word);
        limit(listening, STALL_SECONDS);
        say("ready");
        return;
    }
    *port++ = 0;
    if (inet_pton(AF_INET, word, &address) != 1)
        fail(word);
    for (port = strtok(port, ","); port && number_of_ends < MOST_PORTS; port = strtok(NULL, ","))
        ends[number_of_ends++] =
            (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr = address};
    if (!number_of_ends)
        exit(2);
}

/* Return the next connected socket of END, or -1. */
static int connection(int most_seconds)
{
    struct sockaddr_in *end;
    int fd;

    if (listening >= 0) {
        if ((fd = accept(listening, NULL, NULL)) < 0)
            return -1;
    } else if ((fd = socket(AF_INET, SOCK_STREAM, 0)) < 0) {
        fail("socket");
    }
    limit(fd, most_seconds);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (listening >= 0)
        return fd;
    end = &ends[connects++ % number_of_ends];
    if (!connect(fd, (struct sockaddr *)end, sizeof *end))
        return fd;
    close(fd);
    return -1;
}

/* Run so many threads to their ends. */
static void together(void *(*work)(void *), int threads)
{
    pthread_t all[MOST_THREADS];

    if (threads < 1 || threads > MOST_THREADS)
        exit(2);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&all[i], NULL, work, NULL))
            fail("pthread_create");
    for (int i = 0; i < threads; i++)
        pthread_join(all[i], NULL);
}

static int exchange(int fd)
{
    return send(fd, buffer, size, MSG_NOSIGNAL) == size && recv(fd, buffer, size, MSG_WAITALL) == size;
}

static void watch(int poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static void serve(char **ports, int number)
{
    int poller = epoll_create1(0), ready, fd, lowest, highest = 0;
    struct epoll_event events[EVENTS];
    ssize_t got;

    watch(poller, STDIN_FILENO);
    for (lowest = 0; number--; highest = fd) { /* nothing else is opened meanwhile, so their descriptors are a range */
        watch(poller, fd = listener(*ports++));
        lowest = lowest ? lowest : fd;
    }
    say("ready");
    for (;;) {
        ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            fd = events[i].data.fd;
            if (fd == STDIN_FILENO)
                return;
            if (lowest <= fd && fd <= highest) {
                if ((fd = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) < 0)
                    continue;
                set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
                watch(poller, fd);
                continue;
            }
            got = recv(fd, buffer, sizeof buffer, 0);
            if (got > 0)
                send(fd, buffer, got, MSG_NOSIGNAL);
            else if (!got || errno != EAGAIN)
                close(fd);
        }
    }
}

static void *read_stream(void *unused)
{
    double begin = 0, previous = 0, pause = 0, time;
    unsigned long long received = 0;
    int fd = connection(STALL_SECONDS);
    ssize_t got = -1;

    while (fd >= 0 && (got = recv(fd, buffer, sizeof buffer, 0)) > 0) {
        time = now();
        if (!received)
            begin = previous = time;
        if (time - previous > pause)
            pause = time - previous;
        previous = time;
        received += got;
    }
    pthread_mutex_lock(&lock);
    if (received && (!moved || begin < first))
        first = begin;
    if (previous > last)
        last = previous;
    if (pause > longest)
        longest = pause;
    moved += received;
    broken_streams += got < 0;
    pthread_mutex_unlock(&lock);
    return unused;
}

static void sink(int streams)
{
    together(read_stream, streams);
    printf("{\"received\": %llu, \"seconds\": %.6f, \"longest_pause_ms\": %.3f, \"whole\": %s}\n", moved, last - first,
           longest * 1e3, broken_streams ? "false" : "true");
}

static void *write_stream(void *unused)
{
    int fd = connection(STALL_SECONDS);
    struct pollfd writable = {.fd = fd, .events = POLLOUT}, readable = {.fd = fd, .events = POLLIN};
    unsigned long long sent = 0;
    double begin = now(), left;
    ssize_t wrote;

    if (fd < 0)
        fail("connection");
    memset(buffer, 'x', sizeof buffer);
    while ((left = begin + seconds - now()) > 0) {
        wrote = send(fd, buffer, sizeof buffer, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (wrote > 0)
            sent += wrote;
        else if (errno != EAGAIN)
            fail("send");
        else
            poll(&writable, 1, left * 1e3 + 1);
    }
    shutdown(fd, SHUT_WR);
    poll(&readable, 1, DRAIN_SECONDS * 1000);
    pthread_mutex_lock(&lock);
    moved += sent;
    pthread_mutex_unlock(&lock);
    return unused;
}

static void flood(int streams)
{
    together(write_stream, streams);
    printf("{\"sent\": %llu, \"seconds\": %.6f}\n", moved, seconds);
}

static void *ask_often(void *unused)
{
    double before = began, due;
    int fd = -1, done;
    long place;

    while (before - began < seconds && lost < MOST_LOST) {
        if (rate > 0) {
            due = began + turn++ / rate;
            if (due - began >= seconds)
                break;
            sleep_until(due);
            before = now();
        }
        if (fd < 0)
            fd = connection(ANSWER_SECONDS);
        done = fd >= 0 && exchange(fd);
        if (!done)
            lost++;
        else if ((place = answered++) < MOST_TRIPS)
            trips[place] = now() - before;
        if (fd >= 0 && (once || !done)) {
            close(fd);
            fd = -1;
        }
        before = now();
    }
    return unused;
}

/* Exchange for so many seconds, each time on a new connection or always on one. */
static void ask(int at_once)
{
    double spent;

    began = now();
    together(ask_often, at_once);
    spent = now() - began;
    if (!answered) {
        fprintf(stderr, "no answer from port %d\n", ntohs(ends[0].sin_port));
        exit(1);
    }
    print_trips(answered, lost, spent);
}

/* Open so many connections, each of which has had an exchange of `size` bytes. */
static void open_all(int *fds)
{
    for (long i = 0; i < count; i++) {
        if ((fds[i] = connection(ANSWER_SECONDS)) < 0 || !exchange(fds[i])) {
            fprintf(stderr, "connection %ld of %ld: ", i + 1, count);
            fail("no answer");
        }
    }
}

/* Ask on all connections at once, and on each again when it has its answer; for so many seconds. */
static void crowd(void)
{
    struct epoll_event events[EVENTS];
    struct {
        double asked;
        int got, fd;
    } *all = calloc(count, sizeof *all), *one;
    int *fds = calloc(count, sizeof *fds), poller = epoll_create1(0), ready;
    long open = 0;
    double time;
    ssize_t got;

    if (!all || !fds)
        fail("calloc");
    open_all(fds);
    for (long i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};

        all[i].fd = fds[i];
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fds[i], &event))
            fail("epoll_ctl");
    }
    say("warm");
    await_word();
    began = now();
    for (; open < count; open++) {
        all[open].asked = now();
        send(fds[open], buffer, size, MSG_NOSIGNAL);
    }
    while (open && (ready = epoll_wait(poller, events, EVENTS, ANSWER_SECONDS * 1000)) > 0) {
        for (int i = 0; i < ready; i++) {
            one = events[i].data.ptr;
            got = recv(one->fd, buffer, size - one->got, 0);
            time = now();
            if (got < 1) {
                close(one->fd);
                lost++;
                open--;
                continue;
            }
            if ((one->got += got) < size)
                continue;
            if (answered < MOST_TRIPS)
                trips[answered] = time - one->asked;
            answered++;
            one->got = 0;
            one->asked = time;
            if (time - began >= seconds || send(one->fd, buffer, size, MSG_NOSIGNAL) != size)
                open--;
        }
    }
    print_trips(answered, lost + open, now() - began);
}

static void hold(void)
{
    int *fds = calloc(count, sizeof *fds);

    if (!fds)
        fail("calloc");
    size = 1;
    open_all(fds);
    say("ready");
    await_end_of_input();
}

/* Return what follows the number of a transfer. */
static char *content(uint64_t number)
{
    return contents + number * STRIDE % MOST_SIZE;
}

/* Wait for the end of a transfer; after one wait in vain, no more. */
static void await_an_end(void)
{
    static atomic_int in_vain;
    struct pollfd readable = {.fd = fifo, .events = POLLIN};
    char byte;

    while (!in_vain) {
        if (poll(&readable, 1, STALL_SECONDS * 1000) < 1)
            in_vain = 1;
        else if (read(fifo, &byte, 1) == 1) /* no other thread was faster */
            return;
    }
}

static void *give_often(void *unused)
{
    uint64_t number;
    int fd;

    while ((number = turn++) < (uint64_t)count) {
        struct iovec parts[] = {{&number, sizeof number}, {content(number), size - sizeof number}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

        if (number >= (uint64_t)most_at_once)
            await_an_end();
        if ((fd = connection(STALL_SECONDS)) < 0 && listening >= 0)
            break; /* no others will come */
        if (fd >= 0 && sendmsg(fd, &message, MSG_NOSIGNAL) == size)
            answered++;
        if (fd >= 0)
            close(fd);
    }
    return unused;
}

static void *take_often(void *unused)
{
    char *body = malloc(MOST_SIZE + 1);
    uint64_t number;
    ssize_t got = 0;
    int fd, all;

    while (body && turn++ < count) {
        if ((fd = connection(STALL_SECONDS)) < 0) {
            if (listening >= 0)
                break; /* no others will come */
            continue;
        }
        for (all = 0; all <= size && (got = recv(fd, body + all, size + 1 - all, 0)) > 0; all += got)
            ;
        close(fd);
        memcpy(&number, body, sizeof number);
        pthread_mutex_lock(&lock);
        if (all > size)
            transfers.too_long++;
        else if (got < 0)
            transfers.broken++;
        else if (all < size)
            transfers.too_short++;
        else if (number >= (uint64_t)count || seen[number]++ ||
                 memcmp(body + sizeof number, content(number), size - sizeof number))
            transfers.different++;
        else
            transfers.whole++;
        pthread_mutex_unlock(&lock);
        if (write(fifo, "", 1) != 1)
            fail("FIFO");
    }
    free(body);
    return unused;
}

static void fill_contents(void)
{
    uint64_t state = 88172645463325252u; /* xorshift64, Marsaglia 2003 */

    for (size_t at = 0; at < sizeof contents; at += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(contents + at, &state, sizeof state);
    }
}

static void give(void)
{
    together(give_often, most_at_once);
    printf("{\"given\": %ld}\n", (long)answered);
}

static void take(void)
{
    began = now();
    together(take_often, most_at_once);
    printf("{\"whole\": %ld, \"too_short\": %ld, \"too_long\": %ld, \"different\": %ld, \"broken\": %ld, "
           "\"seconds\": %.6f}\n",
           transfers.whole, transfers.too_short, transfers.too_long, transfers.different, transfers.broken,
           now() - began);
}

int main(int words, char **word)
{
    const char *mode = words > 2 ? word[1] : "";

    use_all_descriptors();
    if (!strcmp(mode, "serve")) {
        serve(word + 2, words - 2);
    } else if (!strcmp(mode, "sink") && words <= 4) {
        use(word[2]);
        sink(words > 3 ? atoi(word[3]) : 1);
    } else if (!strcmp(mode, "flood") && (words == 4 || words == 5)) {
        seconds = atof(word[3]);
        use(word[2]);
        flood(words > 4 ? atoi(word[4]) : 1);
    } else if ((!strcmp(mode, "connect") && words >= 5 && words <= 7) || (!strcmp(mode, "ask") && words == 5)) {
        size = atoi(word[3]);
        seconds = atof(word[4]);
        once = *mode == 'c';
        rate = words > 6 ? atof(word[6]) : 0;
        use(word[2]);
        ask(words > 5 ? atoi(word[5]) : 1);
    } else if (!strcmp(mode, "crowd") && words == 6) {
        size = atoi(word[3]);
        seconds = atof(word[4]);
        count = atol(word[5]);
        use(word[2]);
        crowd();
    } else if (!strcmp(mode, "hold") && words == 4) {
        count = atol(word[3]);
        use(word[2]);
        hold();
    } else if ((!strcmp(mode, "give") || !strcmp(mode, "take")) && words == 7) {
        size = atoi(word[3]);
        count = atol(word[4]);
        if (size <= (int)sizeof(uint64_t) || size > MOST_SIZE || count > MOST_TRANSFERS)
            return 2;
        most_at_once = atoi(word[5]);
        if ((fifo = open(word[6], O_RDWR | O_NONBLOCK)) < 0)
            fail(word[6]);
        fill_contents();
        use(word[2]);
        (*mode == 'g' ? give : take)();
    } else {
        return 2;
    }
    return 0;
}
