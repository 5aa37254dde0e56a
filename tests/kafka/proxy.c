// SPDX-License-Identifier: Apache-2.0
//
// A TCP proxy on the loopback interface that is a bad network:
//
//     proxy LISTEN_PORT TARGET_PORT [SEED]
//
// It reads commands, a line each, from stdin, and answers each with the same line when it holds; it
// ends with stdin.
//
//     pass               as it comes; undoes delay, rate and hole
//     delay MS JITTER    each piece is passed on MS to MS + JITTER later, in order
//     rate BYTES         at most that many each second, per direction and connection
//     hole               nothing is passed on and nothing is closed; new connections are taken
//     reset BYTES        after so many further bytes to a client, all connections end by a reset
//     cut BYTES          likewise by an orderly close, in the middle of a message
//     flip N             one bit in the middle of each of the next N answers of 4 KiB and more
//     count              answers "count CONNECTIONS BYTES RESETS CUTS FLIPS", since the start
//
// Answers are found by Kafka's framing: four bytes of length before each. One thread, poll().
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 64, PIECE = 16384, QUEUE_MAX = 64, ANSWER_LARGE = 4096 };

struct piece {
    char bytes[PIECE];
    size_t n, sent;
    int64_t due_ms;
};

// One direction of a connection: from[0] is read, and what was read goes to the other end.
struct flow {
    struct piece *pieces; // a ring of QUEUE_MAX
    int first, n;
    bool ended;       // nothing more comes
    double allowance; // bytes that the rate allows now
    int64_t filled_ms;
    // Of the answers: where the current one ends, and how much of the next length is known.
    uint32_t left, length;
    int length_bytes;
    int64_t flip_at; // bytes until the one to change, -1: none
};

struct connection {
    int fd[2]; // client, broker
    struct flow flow[2];
};

static struct connection connections[CONNECTIONS_MAX];
static int n_connections;
static int64_t delay_ms, jitter_ms, rate, break_after = -1;
static bool hole, by_reset;
static int flips;
static uint64_t counted_connections, counted_bytes, counted_resets, counted_cuts, counted_flips;
static uint64_t random_state = 1;

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t random_below(int64_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return n > 0 ? (int64_t)(random_state >> 33) % n : 0;
}

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void connection_close(struct connection *c, bool reset)
{
    for (int side = 0; side < 2; side++) {
        if (reset)
            setsockopt(c->fd[side], SOL_SOCKET, SO_LINGER, &(struct linger){1, 0},
                       sizeof(struct linger));
        close(c->fd[side]);
        free(c->flow[side].pieces);
    }
    *c = connections[--n_connections];
}

static void connection_open(int listener, int target)
{
    struct sockaddr_in to = loopback(target);
    const int client = accept(listener, NULL, NULL);
    const int broker = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct connection *c = &connections[n_connections];

    if (client < 0 || broker < 0 || n_connections == CONNECTIONS_MAX ||
        connect(broker, (struct sockaddr *)&to, sizeof to) < 0) {
        close(client);
        close(broker);
        return;
    }
    *c = (struct connection){.fd = {client, broker}};
    for (int side = 0; side < 2; side++) {
        setsockopt(c->fd[side], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        fcntl(c->fd[side], F_SETFL, O_NONBLOCK);
        c->flow[side] = (struct flow){.pieces = calloc(QUEUE_MAX, sizeof(struct piece)),
                                      .filled_ms = now_ms(),
                                      .flip_at = -1};
        if (!c->flow[side].pieces)
            abort();
    }
    n_connections++;
    counted_connections++;
}

// Follows the framing through the bytes of answers, and changes the one that was chosen.
static void answers_follow(struct flow *f, char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (f->left == 0) {
            f->length = f->length << 8 | (unsigned char)bytes[i];
            if (++f->length_bytes < 4)
                continue;
            f->left = f->length;
            f->length = 0;
            f->length_bytes = 0;
            f->flip_at = flips > 0 && f->left >= ANSWER_LARGE ? (int64_t)f->left / 2 : -1;
            flips -= f->flip_at >= 0;
            continue;
        }
        if (f->flip_at == f->left) {
            bytes[i] ^= 1;
            f->flip_at = -1;
            counted_flips++;
        }
        f->left--;
    }
}

// Takes in what one end has. False: the connection is gone.
static bool flow_read(struct connection *c, int side)
{
    struct flow *f = &c->flow[side];
    struct piece *p = &f->pieces[(f->first + f->n) % QUEUE_MAX];
    const ssize_t n = read(c->fd[side], p->bytes, PIECE);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    f->ended = n == 0;
    if (n == 0)
        return true;
    if (side == 1)
        answers_follow(f, p->bytes, (size_t)n);
    p->n = (size_t)n;
    p->sent = 0;
    p->due_ms = now_ms() + delay_ms + random_below(jitter_ms + 1);
    // In order: none is due before the one that it follows.
    if (f->n > 0) {
        const struct piece *before = &f->pieces[(f->first + f->n - 1) % QUEUE_MAX];
        if (p->due_ms < before->due_ms)
            p->due_ms = before->due_ms;
    }
    f->n++;
    return true;
}

// Passes on what is due. False: the connection is gone.
static bool flow_write(struct connection *c, int side)
{
    struct flow *f = &c->flow[side];
    const int64_t now = now_ms();

    f->allowance += (double)rate * (double)(now - f->filled_ms) / 1000;
    f->filled_ms = now;
    if (f->allowance > (double)rate / 10)
        f->allowance = (double)rate / 10;
    while (f->n > 0 && !hole) {
        struct piece *p = &f->pieces[f->first];
        size_t size = p->n - p->sent;
        if (p->due_ms > now)
            return true;
        if (rate > 0 && (double)size > f->allowance)
            size = f->allowance > 0 ? (size_t)f->allowance : 0;
        if (side == 1 && break_after >= 0 && (int64_t)size > break_after)
            size = (size_t)break_after;
        if (size == 0)
            return true;
        const ssize_t n = write(c->fd[!side], p->bytes + p->sent, size);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        f->allowance -= rate > 0 ? (double)n : 0;
        counted_bytes += side == 1 ? (uint64_t)n : 0;
        break_after -= side == 1 && break_after >= 0 ? n : 0;
        p->sent += (size_t)n;
        if (p->sent < p->n)
            return true;
        f->first = (f->first + 1) % QUEUE_MAX;
        f->n--;
    }
    return f->n > 0 || !f->ended;
}

static void command(char *line)
{
    long long a = 0, b = 0;
    char word[16] = "";

    line[strcspn(line, "\n")] = '\0';
    sscanf(line, "%15s %lld %lld", word, &a, &b);
    if (!strcmp(word, "pass")) {
        delay_ms = jitter_ms = rate = 0;
        hole = false;
    } else if (!strcmp(word, "delay")) {
        delay_ms = a;
        jitter_ms = b;
    } else if (!strcmp(word, "rate")) {
        rate = a;
    } else if (!strcmp(word, "hole")) {
        hole = true;
    } else if (!strcmp(word, "reset") || !strcmp(word, "cut")) {
        break_after = a;
        by_reset = *word == 'r';
    } else if (!strcmp(word, "flip")) {
        flips += (int)a;
    } else if (!strcmp(word, "count")) {
        printf("count %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
               counted_connections, counted_bytes, counted_resets, counted_cuts, counted_flips);
        fflush(stdout);
        return;
    } else {
        fprintf(stderr, "proxy: '%s': see the head of proxy.c\n", line);
        exit(2);
    }
    puts(line);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct pollfd polled[2 + 2 * CONNECTIONS_MAX];
    char line[128];
    size_t line_n = 0;

    if (argc < 3) {
        fprintf(stderr, "usage: proxy LISTEN_PORT TARGET_PORT [SEED]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    random_state += argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = loopback(atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 16) < 0) {
        perror("proxy");
        return 1;
    }
    for (;;) {
        polled[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
        polled[1] = (struct pollfd){.fd = listener, .events = POLLIN};
        bool waiting = false; // for a time that has not come, or for room
        for (int i = 0; i < n_connections; i++)
            for (int side = 0; side < 2; side++) {
                const struct flow *f = &connections[i].flow[side];
                const bool full = f->n == QUEUE_MAX;
                polled[2 + 2 * i + side] = (struct pollfd){
                    .fd = full || f->ended ? -1 : connections[i].fd[side], .events = POLLIN};
                waiting |= f->n > 0;
            }
        const int n = n_connections;
        if (poll(polled, (nfds_t)(2 + 2 * n), waiting ? 2 : 200) < 0 && errno != EINTR)
            return 1;
        if (polled[0].revents) {
            const ssize_t got = read(STDIN_FILENO, line + line_n, sizeof line - 1 - line_n);
            if (got <= 0)
                return 0;
            line_n += (size_t)got;
            for (char *end; (end = memchr(line, '\n', line_n));) {
                char one[sizeof line];
                const size_t size = (size_t)(end - line) + 1;
                memcpy(one, line, size);
                one[size - 1] = '\0';
                memmove(line, line + size, line_n -= size);
                command(one);
            }
        }
        // From the last on: the one that is closed is replaced by the last.
        for (int i = n; i-- > 0;) {
            struct connection *c = &connections[i];
            bool alive = true;
            for (int side = 0; side < 2 && alive; side++) {
                if (polled[2 + 2 * i + side].revents)
                    alive = flow_read(c, side);
                if (alive)
                    alive = flow_write(c, side);
            }
            if (!alive)
                connection_close(c, false);
        }
        if (break_after == 0) {
            break_after = -1;
            counted_resets += by_reset;
            counted_cuts += !by_reset;
            while (n_connections > 0)
                connection_close(&connections[n_connections - 1], by_reset);
        }
        if (polled[1].revents)
            connection_open(listener, atoi(argv[2]));
    }
}
