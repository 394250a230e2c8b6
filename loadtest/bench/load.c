// A load generator that costs next to nothing: N connections, each sends again as soon as its answer ended.
//
//     gcc -O2 -o load load.c && ./load PORT BODY_FILE CONNECTIONS SECONDS WARM_UP_SECONDS [HEADER]...
//
// POST /v1/chat/completions. Sixteen # in the body become a number that no other request has.
// Prints one JSON line: answers, a second; latency and time to the first body byte in microseconds (p50, p99);
// events of a streamed answer; failed (connection broken), refused (status other than 200), both over the whole run.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16384, LATENCIES = 1 << 22, DIGITS = 16 };
typedef enum { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER } Place;
typedef struct Conn {
    int fd, status, closing, events, matched;
    Place place;
    char *request, *number, head[HEAD], size[32];
    size_t sent, head_length, size_length, left;
    double started, first;
} Conn;

static int port, poller;
static char *request, *number;
static size_t request_length, first_number;
static double measured_from, ends;
static float *latencies, *firsts;
static size_t answers, failed, refused, asked, events, streams;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void watch(Conn *conn, int operation, unsigned wanted) {
    struct epoll_event event = {wanted, {.ptr = conn}};
    epoll_ctl(poller, operation, conn->fd, &event);
}

static void dial(Conn *conn) {
    int one = 1;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port)};
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connect(conn->fd, (struct sockaddr *)&there, sizeof there);
    watch(conn, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void go_on(Conn *conn) {  // sends what is left of the request
    while (conn->sent < request_length) {
        ssize_t wrote = write(conn->fd, conn->request + conn->sent, request_length - conn->sent);
        if (wrote < 0) {
            watch(conn, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        conn->sent += wrote;
    }
}

static void ask(Conn *conn) {
    conn->sent = conn->head_length = conn->size_length = conn->left = 0;
    conn->status = conn->closing = conn->events = conn->matched = 0;
    conn->place = IN_HEAD;
    conn->first = 0;
    conn->started = now();
    asked++;
    if (conn->number) {
        char digits[24];
        snprintf(digits, sizeof digits, "%016zu", first_number + asked);
        memcpy(conn->number, digits, DIGITS);
    }
    if (conn->fd < 0)
        dial(conn);
    else
        go_on(conn);
}

static void ended(Conn *conn, int complete) {
    double at = now();
    failed += !complete;
    refused += complete && conn->status != 200;
    if (complete && at >= measured_from && at <= ends && answers < LATENCIES) {
        latencies[answers] = (at - conn->started) * 1e6;
        firsts[answers++] = (conn->first - conn->started) * 1e6;
        if (conn->events) {
            events += conn->events;
            streams++;
        }
    }
    if (!complete || conn->closing) {
        close(conn->fd);
        conn->fd = -1;
    }
    if (at < ends)
        ask(conn);
}

static void count(Conn *conn, const char *data, size_t length) {
    for (size_t i = 0; i < length; i++) {
        conn->matched = data[i] == "data:"[conn->matched] ? conn->matched + 1 : data[i] == 'd';
        if (conn->matched == 5) {
            conn->events++;
            conn->matched = 0;
        }
    }
}

static void read_head(Conn *conn) {
    conn->status = atoi(conn->head + 9);
    conn->place = IN_BODY;
    for (char *line = conn->head; line; line = strstr(line, "\r\n")) {
        line += line != conn->head ? 2 : 0;
        if (!strncasecmp(line, "content-length:", 15))
            conn->left = strtoul(line + 15, NULL, 10);
        else if (!strncasecmp(line, "transfer-encoding:", 18))
            conn->place = IN_SIZE;
        else if (!strncasecmp(line, "connection: close", 17))
            conn->closing = 1;
    }
}

static size_t feed_head(Conn *conn, const char *data, size_t length) {  // how much of `data` belongs to the head
    size_t room = HEAD - 1 - conn->head_length, before = conn->head_length;
    size_t taken = length < room ? length : room;
    memcpy(conn->head + before, data, taken);
    conn->head_length += taken;
    conn->head[conn->head_length] = 0;
    char *blank = strstr(conn->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!blank)
        return taken;
    blank[2] = 0;
    read_head(conn);
    return blank + 4 - conn->head - before;
}

static size_t feed_body(Conn *conn, const char *data, size_t length) {
    size_t taken = length < conn->left ? length : conn->left;
    count(conn, data, taken);
    conn->left -= taken;
    if (conn->place == IN_CHUNK && !conn->left)
        conn->place = AFTER_CHUNK;
    return taken;
}

static int feed_line(Conn *conn, char byte) {  // of chunked framing; 1 at the end of the answer
    if (byte != '\n') {
        if (byte != '\r' && conn->size_length < sizeof conn->size - 1)
            conn->size[conn->size_length++] = byte;
        return 0;
    }
    conn->size[conn->size_length] = 0;
    size_t empty = !conn->size_length;
    conn->size_length = 0;
    if (conn->place == IN_TRAILER)
        return empty;
    if (conn->place == AFTER_CHUNK)
        conn->place = IN_SIZE;
    else {
        conn->left = strtoul(conn->size, NULL, 16);
        conn->place = conn->left ? IN_CHUNK : IN_TRAILER;
    }
    return 0;
}

static int feed(Conn *conn, const char *data, size_t length) {  // 1 when the answer ended
    while (length) {
        size_t taken = 1;
        int end = 0;
        if (conn->place == IN_HEAD)
            taken = feed_head(conn, data, length);
        else if (conn->place == IN_BODY || conn->place == IN_CHUNK)
            taken = feed_body(conn, data, length);
        else
            end = feed_line(conn, *data);
        if (end || (conn->place == IN_BODY && !conn->left))
            return 1;
        data += taken;
        length -= taken;
        if (!conn->first && length && conn->place != IN_HEAD)
            conn->first = now();
    }
    return 0;
}

static void take(Conn *conn) {
    static char data[262144];
    ssize_t got = read(conn->fd, data, sizeof data);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        ended(conn, 0);
    else {
        if (!conn->first && conn->place != IN_HEAD)
            conn->first = now();
        if (feed(conn, data, got))
            ended(conn, 1);
    }
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void prepare(const char *file, char **headers, int n) {
    FILE *opened = fopen(file, "rb");
    char *body = NULL, *at;
    size_t length = 0;
    if (!opened || getdelim(&body, &length, EOF, opened) < 0) {
        perror(file);
        exit(2);
    }
    length = ftell(opened);
    at = request = malloc(length + 65536);
    at += sprintf(at, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
                  "accept: */*\r\nuser-agent: load/1\r\ncontent-length: %zu\r\n", port, length);
    for (int i = 0; i < n; i++)
        at += sprintf(at, "%s\r\n", headers[i]);
    at += sprintf(at, "\r\n");
    memcpy(at, body, length);
    request_length = at + length - request;
    number = memmem(at, length, "################", DIGITS);
    first_number = time(NULL) * 1000000;  // fewer requests than microseconds: the next run begins above them
}

int main(int words, char **word) {
    signal(SIGPIPE, SIG_IGN);
    if (words < 6)
        return 2;
    port = atoi(word[1]);
    int connections = atoi(word[3]);
    double seconds = atof(word[4]), warm = atof(word[5]);
    prepare(word[2], word + 6, words - 6);
    latencies = malloc(LATENCIES * sizeof *latencies);
    firsts = malloc(LATENCIES * sizeof *firsts);
    poller = epoll_create1(0);
    measured_from = now() + warm;
    ends = measured_from + seconds;
    Conn *all = calloc(connections, sizeof *all);
    for (Conn *conn = all; conn < all + connections; conn++) {
        conn->fd = -1;
        conn->request = memcpy(malloc(request_length), request, request_length);
        conn->number = number ? conn->request + (number - request) : NULL;
        ask(conn);
    }
    struct epoll_event happened[512];
    while (now() < ends) {
        int n = epoll_wait(poller, happened, 512, 20);
        for (int i = 0; i < n; i++) {
            Conn *conn = happened[i].data.ptr;
            if (happened[i].events & EPOLLOUT) {
                watch(conn, EPOLL_CTL_MOD, EPOLLIN);
                go_on(conn);
            }
            if (happened[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && conn->fd >= 0)
                take(conn);
        }
    }
    qsort(latencies, answers, sizeof *latencies, by_size);
    qsort(firsts, answers, sizeof *firsts, by_size);
    size_t middle = answers / 2, late = answers * 99 / 100;
    printf("{\"answers\": %zu, \"rate\": %.1f, \"p50\": %.0f, \"p99\": %.0f, \"ttfb50\": %.0f, \"ttfb99\": %.0f, "
           "\"events\": %.2f, \"failed\": %zu, \"refused\": %zu}\n", answers, answers / seconds,
           answers ? latencies[middle] : 0, answers ? latencies[late] : 0, answers ? firsts[middle] : 0,
           answers ? firsts[late] : 0, streams ? (double)events / streams : 0, failed, refused);
    return 0;
}
