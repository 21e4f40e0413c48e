/* One request on each of many connections: load PORT CONNECTIONS THREADS. Prints the seconds and the failures. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_int left, failed;
static uint16_t port;

/* The same request as that of the other benchmarks. */
static const char REQUEST[] = "{\"in\":\"ping\",\"params\":[1]}";

/* Connects from an address of the thread, so that ports do not run out. Returns whether there was a reply. */
static int ask(long thread)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000101 + thread)};
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char buffer[4096];
    uint32_t length = sizeof REQUEST - 1, wanted = 0;
    size_t have = 0;
    int fd = socket(AF_INET, SOCK_STREAM, 0), done = 0;
    struct linger reset = {1, 0};
    if (bind(fd, (void *)&own, sizeof own) || connect(fd, (void *)&server, sizeof server))
        goto end;
    memcpy(buffer, &length, 4);
    memcpy(buffer + 4, REQUEST, length);
    if (write(fd, buffer, 4 + length) != (ssize_t)(4 + length))
        goto end;
    do {
        ssize_t count = read(fd, buffer + have, sizeof buffer - have);
        if (count <= 0)
            goto end;
        have += count;
        if (have >= 4)
            memcpy(&wanted, buffer, 4);
    } while (have < 4 || have < 4 + (size_t)wanted);
    done = 1;
end:
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
    return done;
}

static void *run(void *thread)
{
    while (atomic_fetch_sub(&left, 1) > 0)
        if (!ask((long)thread))
            failed++;
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];
    struct timespec begin, end;
    if (argc != 4 || atoi(argv[3]) < 1 || atoi(argv[3]) > 64)
        return 64;
    port = (uint16_t)atoi(argv[1]);
    left = atoi(argv[2]);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (long i = 0; i < atoi(argv[3]); i++)
        pthread_create(&threads[i], NULL, run, (void *)i);
    for (long i = 0; i < atoi(argv[3]); i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.6f %d\n", end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9, (int)failed);
}
