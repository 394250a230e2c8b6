// A model server that costs next to nothing: one thread, epoll, fixed answers.
//
//     gcc -O2 -o stub stub.c && ./stub PORT [CHUNKS] [MICROSECONDS BETWEEN CHUNKS]
//
// POST: a 494-byte JSON answer; a stream of CHUNKS events and [DONE] if the body holds "stream": true; a verdict
// ("simple", as a stream of three events in one write) if the body holds the gateway's routing question.
// GET: a small JSON object that passes for /health and /v1/models. Requests need a content-length.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define QUESTION "Routing question from the gateway"
#define ID "chatcmpl-0123456789abcdef0123456789abcdef"
#define OK "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
#define USAGE "\"usage\":{\"prompt_tokens\":64,\"total_tokens\":96,\"completion_tokens\":32,\"prompt_tokens_details\":null}"
#define TEXT "The capital of France is Paris. It lies on the river Seine in the north of the country and has about two " \
             "million inhabitants."
enum { HEAD = 16384, TEXT_MAX = 4096 };

typedef struct Text { char bytes[TEXT_MAX]; size_t length; } Text;
typedef struct Conn {
    int fd, closed, queued;
    char *in, *out;
    size_t in_length, in_room, out_length, out_at, out_room;
    int chunks_left;
    uint64_t due;
    struct Conn *next;
} Conn;

static int poller, chunks = 32;
static uint64_t gap;
static Text answer, models, verdict, stream_head, first_event, event, last_event;
static Conn *waiting, *last_waiting;  // connections whose next event is due, the earliest first: all gaps are equal

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static void whole(Text *text, const char *kind, const char *body) {
    text->length = sprintf(text->bytes, OK "content-length: %zu\r\ncontent-type: %s\r\n\r\n%s", strlen(body), kind, body);
}

static void chunk(Text *text, const char *delta, const char *finish) {
    char data[TEXT_MAX / 2];
    int length = sprintf(data, "data: {\"id\":\"" ID "\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
                         "\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":%s,\"logprobs\":null,"
                         "\"finish_reason\":%s}]}\n\n", delta, finish);
    text->length = sprintf(text->bytes, "%x\r\n%s\r\n", length, data);
}

static void prepare(void) {
    whole(&answer, "application/json", "{\"id\":\"" ID "\",\"object\":\"chat.completion\",\"created\":1760000000,"
          "\"model\":\"stub\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" TEXT "\","
          "\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],"
          USAGE "}");
    whole(&models, "application/json", "{\"object\":\"list\",\"status\":\"ok\",\"data\":[{\"id\":\"stub\","
          "\"object\":\"model\",\"created\":1760000000,\"owned_by\":\"vllm\",\"root\":\"stub\",\"parent\":null,"
          "\"max_model_len\":131072}]}");
    whole(&verdict, "text/event-stream; charset=utf-8", "data: {\"id\":\"" ID "\",\"model\":\"stub\",\"choices\":[{\"index\":0,"
          "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
          "data: {\"id\":\"" ID "\",\"model\":\"stub\",\"choices\":[{\"index\":0,"
          "\"delta\":{\"content\":\"{\\\"complexity\\\":\\\"simple\\\"}\"},\"finish_reason\":\"stop\"}]}\n\n"
          "data: [DONE]\n\n");
    stream_head.length = sprintf(stream_head.bytes,
        OK "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    chunk(&first_event, "{\"role\":\"assistant\",\"content\":\"\"}", "null");
    chunk(&event, "{\"content\":\" token\"}", "null");
    chunk(&last_event, "{\"content\":\"\"}", "\"stop\"");
    last_event.length += sprintf(last_event.bytes + last_event.length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void watch(Conn *conn, uint32_t events) {
    struct epoll_event wanted = {events, {.ptr = conn}};
    epoll_ctl(poller, EPOLL_CTL_MOD, conn->fd, &wanted);
}

static void release(Conn *conn) {
    free(conn->in);
    free(conn->out);
    free(conn);
}

static void end(Conn *conn) {
    conn->closed = 1;
    close(conn->fd);
    if (!conn->queued)
        release(conn);
}

static void put(Conn *conn, const Text *text) {
    size_t need = conn->out_length + text->length;
    if (need > conn->out_room)
        conn->out = realloc(conn->out, conn->out_room = need * 2);
    memcpy(conn->out + conn->out_length, text->bytes, text->length);
    conn->out_length = need;
}

static int flush(Conn *conn) {  // 0 when the connection is gone
    while (conn->out_at < conn->out_length) {
        ssize_t wrote = write(conn->fd, conn->out + conn->out_at, conn->out_length - conn->out_at);
        if (wrote < 0 && errno == EAGAIN) {
            watch(conn, EPOLLIN | EPOLLOUT);
            return 1;
        }
        if (wrote < 0) {
            end(conn);
            return 0;
        }
        conn->out_at += wrote;
    }
    conn->out_at = conn->out_length = 0;
    return 1;
}

static void queue(Conn *conn) {
    conn->due = now() + gap;
    conn->queued = 1;
    conn->next = NULL;
    if (last_waiting)
        last_waiting->next = conn;
    else
        waiting = conn;
    last_waiting = conn;
}

static void serve(Conn *conn);

static void next_event(Conn *conn) {
    do {
        int left = --conn->chunks_left;
        put(conn, left == 0 ? &last_event : left == chunks - 1 ? &first_event : &event);
        if (!flush(conn))
            return;
    } while (conn->chunks_left && !gap);  // each event is a write of its own, with no gap too
    if (conn->chunks_left)
        queue(conn);
    else
        serve(conn);
}

static int streamed(const char *body, size_t length) {
    const char *at = memmem(body, length, "\"stream\"", 8), *stop = body + length;
    if (!at)
        return 0;
    for (at += 8; at < stop && (*at == ' ' || *at == ':'); at++) {}
    return stop - at >= 4 && !memcmp(at, "true", 4);
}

static void serve(Conn *conn) {  // all whole requests that have arrived, until one is answered by a stream
    while (!conn->chunks_left && conn->in_length) {
        size_t head = conn->in_length < HEAD ? conn->in_length : HEAD, length = 0;
        char *body = memmem(conn->in, head, "\r\n\r\n", 4);
        if (!body)
            return;
        for (char *line = conn->in; line < body; line = (char *)memmem(line, body + 2 - line, "\r\n", 2) + 2)
            if (!strncasecmp(line, "content-length:", 15))
                length = strtoul(line + 15, NULL, 10);
        body += 4;
        size_t size = body - conn->in + length;
        if (conn->in_length < size)
            return;
        int asked = memmem(body, length, QUESTION, strlen(QUESTION)) != NULL;
        int stream = conn->in[0] == 'P' && !asked && streamed(body, length);
        put(conn, conn->in[0] != 'P' ? &models : asked ? &verdict : stream ? &stream_head : &answer);
        memmove(conn->in, conn->in + size, conn->in_length -= size);
        if (stream) {
            conn->chunks_left = chunks;
            next_event(conn);
            return;
        }
        if (!flush(conn))
            return;
    }
}

static void take(Conn *conn) {
    ssize_t got;
    do {
        if (conn->in_room - conn->in_length < HEAD)
            conn->in = realloc(conn->in, conn->in_room = conn->in_room * 2 + HEAD);
        got = read(conn->fd, conn->in + conn->in_length, conn->in_room - conn->in_length);
        conn->in_length += got > 0 ? got : 0;
    } while (got > 0 && conn->in_length == conn->in_room);
    if (got == 0 || (got < 0 && errno != EAGAIN))
        end(conn);
    else
        serve(conn);
}

static void welcome(int listener) {
    for (int fd, one = 1; (fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Conn *conn = calloc(1, sizeof *conn);
        conn->fd = fd;
        struct epoll_event wanted = {EPOLLIN, {.ptr = conn}};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
    }
}

static void due_events(void) {
    for (uint64_t at = now(); waiting && waiting->due <= at;) {
        Conn *conn = waiting;
        waiting = conn->next;
        if (!waiting)
            last_waiting = NULL;
        conn->queued = 0;
        if (conn->closed)
            release(conn);
        else
            next_event(conn);
    }
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    if (count < 2)
        return 2;
    chunks = count > 2 ? atoi(words[2]) : chunks;
    gap = count > 3 ? strtoul(words[3], NULL, 10) : 0;
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) {
        perror("stub");
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event wanted = {EPOLLIN, {.ptr = NULL}}, happened[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        uint64_t at = now(), wait = waiting && waiting->due > at ? waiting->due - at : 0;
        struct timespec pause = {wait / 1000000, wait % 1000000 * 1000};
        int n = epoll_pwait2(poller, happened, 512, waiting ? &pause : NULL, NULL);
        for (int i = 0; i < n; i++) {
            Conn *conn = happened[i].data.ptr;
            if (!conn) {
                welcome(listener);
                continue;
            }
            if (happened[i].events & EPOLLOUT) {
                watch(conn, EPOLLIN);
                if (!flush(conn))
                    continue;
            }
            if (happened[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                take(conn);
        }
        due_events();
    }
}
