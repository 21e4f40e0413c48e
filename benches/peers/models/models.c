/*
 * The servers of the textbooks, for `cargo bench --bench peers -- --models`: each answers the frames
 * {"in":"ping","params":X} with {"out":"pong","result":X}, and {"in":"pid","params":X} with its process id.
 *
 * iterative  one process, one connection at a time
 * fork       one process for each connection
 * shared     several processes that wait for the same listener, as nginx's without reuseport
 * reuseport  several processes, each with a listener of its own (SO_REUSEPORT)
 * pass       a process that passes each connection to one of several others, in turn, and keeps a copy until that one
 *            has closed it: what fdpassd does, without leases and shared memory
 *
 * Usage: models MODEL PORT PROCESSES
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_FRAME 4096
#define PREFIX 4
#define EVENTS 256
#define BATCH 64

static const char ping[] = "{\"in\":\"ping\",\"params\":";
static const char pid[] = "{\"in\":\"pid\",\"params\":";
static const char pong[] = "{\"out\":\"pong\",\"result\":";

/* A connection, with the bytes of a frame that is not complete. */
struct client {
    int socket;
    int copy; /* the number of the copy that the process has that passed it */
    size_t length;
    char bytes[PREFIX + MAX_FRAME];
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_on(uint16_t port, int is_shared, int flags)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    if (listener < 0)
        fail("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &is_shared, sizeof is_shared) ||
        setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
        fail("setsockopt");
    if (bind(listener, (struct sockaddr *)&address, sizeof address))
        fail("bind");
    if (listen(listener, SOMAXCONN))
        fail("listen");
    return listener;
}

/* Writes the reply to a request. Returns its length, or 0 if the request is none of these. */
static size_t answer(const char *body, size_t length, char *reply)
{
    char number[16];
    const char *result;
    size_t head = sizeof pong - 1, size;
    uint32_t prefix;

    if (length > sizeof ping && !memcmp(body, ping, sizeof ping - 1)) {
        result = body + sizeof ping - 1;
        size = length - sizeof ping; /* without the brace */
    } else if (length > sizeof pid && !memcmp(body, pid, sizeof pid - 1)) {
        result = number;
        size = (size_t)snprintf(number, sizeof number, "%d", getpid());
    } else {
        return 0;
    }
    prefix = htole32((uint32_t)(head + size + 1));
    memcpy(reply, &prefix, PREFIX);
    memcpy(reply + PREFIX, pong, head);
    memcpy(reply + PREFIX + head, result, size);
    reply[PREFIX + head + size] = '}';
    return PREFIX + head + size + 1;
}

/* Reads once, and answers the frames that are complete. Returns 0 if the connection is over. */
static int serve_once(struct client *client)
{
    char reply[PREFIX + MAX_FRAME + sizeof pong];
    size_t used = 0;
    ssize_t got = read(client->socket, client->bytes + client->length, sizeof client->bytes - client->length);

    if (got < 0)
        return errno == EINTR || errno == EAGAIN;
    if (got == 0)
        return 0;
    client->length += (size_t)got;
    while (client->length - used >= PREFIX) {
        uint32_t body;
        size_t size;
        memcpy(&body, client->bytes + used, PREFIX);
        body = le32toh(body);
        if (body > MAX_FRAME)
            return 0;
        if (client->length - used - PREFIX < body)
            break;
        size = answer(client->bytes + used + PREFIX, body, reply);
        if (size == 0 || send(client->socket, reply, size, MSG_NOSIGNAL) != (ssize_t)size)
            return 0;
        used += PREFIX + body;
    }
    client->length -= used;
    memmove(client->bytes, client->bytes + used, client->length);
    return 1;
}

/* Serves one connection to its end. */
static void serve_all(int socket)
{
    struct client client = {.socket = socket};

    while (serve_once(&client))
        ;
    close(socket);
}

static int accept_one(int listener, int flags)
{
    int socket = accept4(listener, NULL, NULL, flags);

    if (socket < 0 && errno != EINTR && errno != EAGAIN && errno != ECONNABORTED)
        fail("accept4");
    return socket;
}

static void run_iterative(int listener)
{
    for (;;) {
        int socket = accept_one(listener, SOCK_CLOEXEC);
        if (socket >= 0)
            serve_all(socket);
    }
}

static void collect(int signal)
{
    int error = errno;

    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    errno = error;
}

static void run_fork(int listener)
{
    struct sigaction action = {.sa_handler = collect, .sa_flags = SA_RESTART};

    if (sigaction(SIGCHLD, &action, NULL))
        fail("sigaction");
    for (;;) {
        int socket = accept_one(listener, SOCK_CLOEXEC);
        if (socket < 0)
            continue;
        switch (fork()) {
        case -1:
            perror("fork");
            break;
        case 0:
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(listener);
            serve_all(socket);
            _exit(0);
        }
        close(socket);
    }
}

/* Serves many connections by one epoll. With `is_shared`, other processes wait for the same listener. */
static void run_events(int listener, int is_shared)
{
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll < 0)
        fail("epoll_create1");
    if (is_shared)
        event.events |= EPOLLEXCLUSIVE;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        fail("epoll_ctl");
    for (;;) {
        int i, ready = epoll_wait(epoll, events, EVENTS, -1);
        for (i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr;
            if (client == NULL) {
                int socket = accept_one(listener, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (socket < 0)
                    continue;
                client = calloc(1, sizeof *client);
                if (client == NULL)
                    fail("calloc");
                client->socket = socket;
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = client};
                if (epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event))
                    fail("epoll_ctl");
            } else if (!serve_once(client)) {
                close(client->socket);
                free(client);
            }
        }
    }
}

static void run_prefork(uint16_t port, int processes, int has_own_listeners)
{
    int i, listener = has_own_listeners ? -1 : listen_on(port, 0, SOCK_NONBLOCK);

    for (i = 0; i < processes; i++) {
        switch (fork()) {
        case -1:
            fail("fork");
            break;
        case 0:
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run_events(has_own_listeners ? listen_on(port, 1, SOCK_NONBLOCK) : listener, !has_own_listeners);
        }
    }
    while (wait(NULL) > 0)
        ;
}

/* Descriptors that are passed to a process, or the numbers of copies that it need not keep. */
struct batch {
    int channel, count;
    int numbers[BATCH];
};

/* Sends the numbers of a batch, with these descriptors if `is_passed`. */
static void send_batch(struct batch *batch, int is_passed)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof batch->numbers)];
    } control;
    size_t length = (size_t)batch->count * sizeof(int);
    struct iovec part = {.iov_base = batch->numbers, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (length == 0)
        return;
    if (is_passed) {
        control.header = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET,
            .cmsg_type = SCM_RIGHTS,
            .cmsg_len = CMSG_LEN(length),
        };
        memcpy(CMSG_DATA(&control.header), batch->numbers, length);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(length);
    }
    if (sendmsg(batch->channel, &message, MSG_NOSIGNAL) < 0)
        fail("sendmsg");
    batch->count = 0;
}

static void watch(int epoll, int socket, void *data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event))
        fail("epoll_ctl");
}

static void serve_passed(int epoll, struct client *client, struct batch *closed)
{
    if (serve_once(client))
        return;
    if (closed->count == BATCH)
        send_batch(closed, 0);
    closed->numbers[closed->count++] = client->copy;
    epoll_ctl(epoll, EPOLL_CTL_DEL, client->socket, NULL);
    shutdown(client->socket, SHUT_RDWR);
    close(client->socket);
    free(client);
}

/* Receives connections. */
static void take(int epoll, struct batch *closed)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(BATCH * sizeof(int))];
    } control;
    int copies[BATCH], i;
    struct iovec part = {.iov_base = copies, .iov_len = sizeof copies};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t length = recvmsg(closed->channel, &message, MSG_CMSG_CLOEXEC);

    if (length <= 0 || CMSG_FIRSTHDR(&message) == NULL)
        exit(0);
    for (i = 0; i < length / (ssize_t)sizeof(int); i++) {
        struct client *client = calloc(1, sizeof *client);
        if (client == NULL)
            fail("calloc");
        memcpy(&client->socket, CMSG_DATA(&control.header) + (size_t)i * sizeof(int), sizeof(int));
        client->copy = copies[i];
        watch(epoll, client->socket, client);
        serve_passed(epoll, client, closed);
    }
}

static void run_passed(int channel)
{
    struct batch closed = {.channel = channel};
    struct epoll_event events[EVENTS];
    int i, epoll = epoll_create1(EPOLL_CLOEXEC);

    watch(epoll, channel, NULL);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (i = 0; i < ready; i++)
            if (events[i].data.ptr)
                serve_passed(epoll, events[i].data.ptr, &closed);
            else
                take(epoll, &closed);
        send_batch(&closed, 0);
    }
}

/* Closes the copies of connections that are closed. */
static void forget(int channel)
{
    int copies[BATCH], i;
    ssize_t length = recv(channel, copies, sizeof copies, 0);

    if (length <= 0)
        exit(1);
    for (i = 0; i < length / (ssize_t)sizeof(int); i++)
        close(copies[i]);
}

static void run_pass(int listener, int processes)
{
    struct batch *batches = calloc((size_t)processes, sizeof *batches);
    struct epoll_event events[EVENTS];
    int i, next = 0, epoll = epoll_create1(EPOLL_CLOEXEC);

    watch(epoll, listener, NULL);
    for (i = 0; i < processes; i++) {
        int pair[2];
        if (batches == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
            fail("socketpair");
        batches[i].channel = pair[0];
        switch (fork()) {
        case -1:
            fail("fork");
            break;
        case 0:
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run_passed(pair[1]);
        }
        close(pair[1]);
        watch(epoll, pair[0], &batches[i]);
    }
    for (;;) {
        int socket, ready = epoll_wait(epoll, events, EVENTS, -1);
        for (i = 0; i < ready; i++) {
            struct batch *batch = events[i].data.ptr;
            if (batch) {
                forget(batch->channel);
                continue;
            }
            while ((socket = accept_one(listener, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
                batch = &batches[next++ % processes];
                if (batch->count == BATCH)
                    send_batch(batch, 1);
                batch->numbers[batch->count++] = socket;
            }
        }
        for (i = 0; i < processes; i++)
            send_batch(&batches[i], 1);
    }
}

int main(int argc, char **argv)
{
    uint16_t port;
    int processes;

    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL PORT PROCESSES\n", argv[0]);
        return 2;
    }
    port = (uint16_t)atoi(argv[2]);
    processes = atoi(argv[3]);
    if (!strcmp(argv[1], "iterative"))
        run_iterative(listen_on(port, 0, 0));
    else if (!strcmp(argv[1], "fork"))
        run_fork(listen_on(port, 0, 0));
    else if (!strcmp(argv[1], "shared"))
        run_prefork(port, processes, 0);
    else if (!strcmp(argv[1], "reuseport"))
        run_prefork(port, processes, 1);
    else if (!strcmp(argv[1], "pass"))
        run_pass(listen_on(port, 0, SOCK_NONBLOCK), processes);
    fprintf(stderr, "%s: unknown model\n", argv[1]);
    return 2;
}
