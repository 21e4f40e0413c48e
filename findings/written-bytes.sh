#!/usr/bin/env bash
# Which writes the kernel counts in wchar and syscw (proc_pid_io(5)), and for which thread.
#
# The manual defines wchar as "a sum of values passed to write(2) and similar system calls". The account of a thread is
# /proc/PID/task/TID/io. /proc/PID/io is not the sum of its threads' accounts: it includes threads that have exited and
# children that were waited for. Observed on Linux 6.18:
#  - sendfile(2), copy_file_range(2) and a write to an eventfd count; send(2) to the same socket does not;
#  - splice(2), io_submit(2) and io_uring do not count, not even an IORING_OP_WRITE that completes within io_uring_enter(2);
#  - a call that writes nothing (EAGAIN) increments syscw;
#  - the account of a process's first thread can be read from the zombie, until the zombie is waited for;
#  - but its file belongs to root then: its own user can read it only by a descriptor that was opened before the death.
#
# Needs cc and Linux with task I/O accounting. The io_uring rows are skipped where io_uring is not allowed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/count.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct { long long wchar, syscw; } account;

static account read_account(const char *path) {
    account found = {-1, -1};
    char line[128];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "wchar: %lld", &found.wchar);
        sscanf(line, "syscw: %lld", &found.syscw);
    }
    if (file) fclose(file);
    return found;
}

static account thread, process;
static int failed;

static void begin(void) {
    thread = read_account("/proc/thread-self/io");
    process = read_account("/proc/self/io");
}

/* compares with the bytes and calls expected in the accounts of the thread and of the process */
static void end(const char *what, int bytes, int calls, int all_bytes, int all_calls) {
    account t = read_account("/proc/thread-self/io"), p = read_account("/proc/self/io");
    long long found[] = {t.wchar - thread.wchar, t.syscw - thread.syscw, p.wchar - process.wchar, p.syscw - process.syscw};
    long long expected[] = {bytes, calls, all_bytes, all_calls};
    int differs = memcmp(found, expected, sizeof found) != 0;
    printf("%-46s thread %5lld bytes %lld calls, process %5lld bytes %lld calls%s\n", what, found[0], found[1], found[2],
           found[3], differs ? "  <- changed" : "");
    fflush(stdout); /* this is a write, so it must precede the next begin() */
    failed |= differs;
}

static char data[5000];
static int null;

static void *write_elsewhere(void *nothing) {
    return write(null, data, 5000) == 5000 ? nothing : data;
}

static void io_uring_row(const char *what, int op, int fd, int flags) {
    struct io_uring_params parameters = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &parameters);
    if (ring < 0) { printf("%-46s skipped: %s\n", what, strerror(errno)); fflush(stdout); return; }
    size_t length = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
    char *queue = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(0, parameters.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                                      IORING_OFF_SQES);
    memset(entry, 0, sizeof *entry);
    entry->opcode = op;
    entry->fd = fd;
    entry->addr = (unsigned long)data;
    entry->len = 5000;
    entry->flags = flags;
    *(unsigned *)(queue + parameters.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(queue + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
    begin();
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1) perror("io_uring_enter");
    end(what, 0, 0, 0, 0);
    close(ring);
}

int main(void) {
    FILE *temporary = tmpfile(), *copy = tmpfile();
    int file = fileno(temporary), sockets[2], pipes[2], counter = eventfd(0, 0), status;
    uint64_t one = 1;
    null = open("/dev/null", O_WRONLY);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets) || pipe(pipes)) return 2;
    if (read_account("/proc/thread-self/io").wchar < 0) { puts("skipped: no task I/O accounting"); return 0; }

    begin(); write(sockets[0], data, 5000); end("write(2) to a Unix socket", 5000, 1, 5000, 1);
    begin(); send(sockets[0], data, 5000, 0); end("send(2) to the same", 0, 0, 0, 0);
    while (send(sockets[0], data, 5000, 0) > 0) {}
    begin(); write(sockets[0], data, 5000); end("write(2) that fails with EAGAIN", 0, 1, 0, 1);
    begin(); write(counter, &one, 8); end("an eventfd", 8, 1, 8, 1);
    write(file, data, 5000);
    off_t offset = 0;
    begin(); sendfile(null, file, &offset, 5000); end("sendfile(2)", 5000, 1, 5000, 1);
    loff_t from = 0;
    begin(); copy_file_range(file, &from, fileno(copy), 0, 5000, 0); end("copy_file_range(2)", 5000, 1, 5000, 1);
    from = 0;
    begin(); splice(file, &from, pipes[1], 0, 5000, 0); end("splice(2) into a pipe", 0, 0, 0, 0);
    begin(); splice(pipes[0], 0, null, 0, 5000, 0); end("splice(2) out of it", 0, 0, 0, 0);
    aio_context_t context = 0;
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = file, .aio_buf = (unsigned long)data, .aio_nbytes = 5000};
    struct iocb *blocks = &block;
    struct io_event event;
    syscall(SYS_io_setup, 4, &context);
    begin(); syscall(SYS_io_submit, context, 1, &blocks); syscall(SYS_io_getevents, context, 1, 1, &event, 0);
    end("io_submit(2) of a pwrite", 0, 0, 0, 0);
    io_uring_row("io_uring: IORING_OP_WRITE", IORING_OP_WRITE, file, 0);
    io_uring_row("io_uring: the same in a kernel thread", IORING_OP_WRITE, file, IOSQE_ASYNC);

    pthread_t other;
    begin(); pthread_create(&other, 0, write_elsewhere, 0); pthread_join(other, 0); end("another thread, after its exit", 0, 0, 5000, 1);
    begin();
    pid_t child = fork();
    if (child == 0) { write(null, data, 5000); _exit(0); }
    siginfo_t info;
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    end("a child, before it is waited for", 0, 0, 0, 0);
    begin(); waitpid(child, &status, 0); end("a child, after it is waited for", 0, 0, 5000, 1);

    child = fork();
    if (child == 0) { write(null, data, 4321); kill(getpid(), 9); }
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/io", child, child);
    account zombie = read_account(path);
    waitpid(child, &status, 0);
    account after = read_account(path);
    printf("%-46s thread %5lld bytes %lld calls; after it is waited for: %s\n", "a zombie that was killed", zombie.wchar,
           zombie.syscw, after.wchar < 0 ? "gone" : "still there");
    failed |= zombie.wchar != 4321 || zombie.syscw != 1 || after.wchar >= 0;

    if (geteuid() == 0 && setuid(65534) == 0) prctl(PR_SET_DUMPABLE, 1);
    int asks[2];
    if (pipe(asks)) return 2;
    child = fork();
    if (child == 0) { char go; read(asks[0], &go, 1); write(null, data, 4321); kill(getpid(), 9); }
    snprintf(path, sizeof path, "/proc/%d/task/%d/io", child, child);
    char text[512] = "";
    int kept = open(path, O_RDONLY);
    write(asks[1], "", 1);
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    int opened = open(path, O_RDONLY), reason = errno;
    int length = pread(kept, text, sizeof text - 1, 0);
    char *sum = strstr(text, "wchar: ");
    printf("%-46s open: %s; by a descriptor from before: %s\n", "the same without root", opened < 0 ? strerror(reason) : "works",
           length < 0 ? strerror(errno) : sum ? strtok(sum, "\n") : "nothing");
    failed |= opened >= 0 || reason != EACCES || length <= 0 || !sum || atoi(sum + 7) != 4321;
    waitpid(child, &status, 0);
    return failed;
}
C
cc -D_GNU_SOURCE -w -include signal.h -include stdint.h -o "$folder/count" "$folder/count.c" -lpthread
echo "Linux $(uname -r)"
if "$folder/count"; then echo "unchanged"; else echo "the kernel counts differently now"; exit 1; fi
