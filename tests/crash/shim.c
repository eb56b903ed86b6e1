/* Faults from below: preloaded into a process, it lets one system call fail, or sets the clock.
 *
 * Calls: once shim_arm(n) was called, the n-th of the calls below (of any thread) fails with the
 * error that is usual for it; the others go through.  shim_calls() tells how many there were,
 * shim_failed() which one failed, shim_only(name) leaves all others out of the count.
 *
 * Clock: the file that AEMBUS_SHIM_CLOCK names holds a number of nanoseconds by which the wall
 * clock is wrong.  What reads that clock is told the wrong time, and waits that end by it end by
 * it, as the kernel's would: the number may change in the middle of one.
 *
 * Reaping: AEMBUS_SHIM_REAP_MS makes every waitpid come so many milliseconds later.
 *
 * Not reached: system calls that the C library makes by itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_long target, calls;
static const char *_Atomic failed = "";
static char only[64];

void shim_only(const char *name) { strncpy(only, name, sizeof only - 1); }
void shim_arm(long number) { calls = 0; failed = ""; target = number; }
void shim_disarm(void) { target = 0; }
long shim_calls(void) { return calls; }
const char *shim_failed(void) { return failed; }

static int is_to_fail(const char *name) {
    if (target == 0 || (*only && strcmp(only, name) != 0)) return 0;
    if (atomic_fetch_add(&calls, 1) + 1 != target) return 0;
    failed = name;
    return 1;
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define FAIL(name, error, result)                                                                  \
    if (is_to_fail(name)) {                                                                        \
        errno = (error);                                                                           \
        return result;                                                                             \
    }

#define OPENING(function)                                                                          \
    int function(const char *path, int flags, ...) {                                               \
        REAL(int, #function, const char *, int, ...);                                              \
        FAIL(#function, EMFILE, -1)                                                                \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        int mode = va_arg(rest, int);                                                              \
        va_end(rest);                                                                              \
        return real(path, flags, mode);                                                            \
    }
OPENING(open)
OPENING(open64)

int shm_open(const char *name, int flags, mode_t mode) {
    REAL(int, "shm_open", const char *, int, mode_t);
    FAIL("shm_open", EMFILE, -1)
    return real(name, flags, mode);
}

sem_t *sem_open(const char *name, int flags, ...) {
    REAL(sem_t *, "sem_open", const char *, int, ...);
    FAIL("sem_open", ENOSPC, SEM_FAILED)
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    unsigned value = va_arg(rest, unsigned);
    va_end(rest);
    return real(name, flags, mode, value);
}

#define SIMPLE(type, function, error, result, parameters, arguments)                               \
    type function parameters {                                                                     \
        static type(*real) parameters;                                                             \
        if (real == NULL) real = (type(*) parameters)dlsym(RTLD_NEXT, #function);                  \
        FAIL(#function, error, result)                                                             \
        return real arguments;                                                                     \
    }

SIMPLE(void *, mmap, ENOMEM, MAP_FAILED,
       (void *at, size_t size, int protection, int flags, int descriptor, off_t offset),
       (at, size, protection, flags, descriptor, offset))
SIMPLE(void *, mmap64, ENOMEM, MAP_FAILED,
       (void *at, size_t size, int protection, int flags, int descriptor, off_t offset),
       (at, size, protection, flags, descriptor, offset))
SIMPLE(int, ftruncate, ENOSPC, -1, (int descriptor, off_t size), (descriptor, size))
SIMPLE(int, ftruncate64, ENOSPC, -1, (int descriptor, off_t size), (descriptor, size))
SIMPLE(int, posix_fallocate, 0, ENOSPC, (int descriptor, off_t offset, off_t size),
       (descriptor, offset, size))
SIMPLE(int, posix_fallocate64, 0, ENOSPC, (int descriptor, off_t offset, off_t size),
       (descriptor, offset, size))
SIMPLE(int, socket, EMFILE, -1, (int family, int type, int protocol), (family, type, protocol))
SIMPLE(int, socketpair, EMFILE, -1, (int family, int type, int protocol, int pair[2]),
       (family, type, protocol, pair))
SIMPLE(int, connect, ENOMEM, -1, (int descriptor, const struct sockaddr *to, socklen_t size),
       (descriptor, to, size))
SIMPLE(int, bind, ENOSPC, -1, (int descriptor, const struct sockaddr *to, socklen_t size),
       (descriptor, to, size))
SIMPLE(int, listen, EADDRINUSE, -1, (int descriptor, int backlog), (descriptor, backlog))
SIMPLE(int, accept4, EMFILE, -1,
       (int descriptor, struct sockaddr *from, socklen_t *size, int flags),
       (descriptor, from, size, flags))
SIMPLE(int, getsockopt, ENOBUFS, -1,
       (int descriptor, int level, int name, void *value, socklen_t *size),
       (descriptor, level, name, value, size))
SIMPLE(ssize_t, send, ENOBUFS, -1, (int descriptor, const void *data, size_t size, int flags),
       (descriptor, data, size, flags))
SIMPLE(ssize_t, recv, ENOMEM, -1, (int descriptor, void *data, size_t size, int flags),
       (descriptor, data, size, flags))
SIMPLE(ssize_t, write, ENOSPC, -1, (int descriptor, const void *data, size_t size),
       (descriptor, data, size))
SIMPLE(ssize_t, pwrite64, ENOSPC, -1, (int descriptor, const void *data, size_t size, off_t offset),
       (descriptor, data, size, offset))
SIMPLE(ssize_t, read, EIO, -1, (int descriptor, void *data, size_t size), (descriptor, data, size))
SIMPLE(int, pipe2, EMFILE, -1, (int pair[2], int flags), (pair, flags))
SIMPLE(int, mkfifo, ENOSPC, -1, (const char *path, mode_t mode), (path, mode))
SIMPLE(int, epoll_create1, EMFILE, -1, (int flags), (flags))
SIMPLE(int, epoll_ctl, ENOMEM, -1, (int epoll, int what, int descriptor, struct epoll_event *event),
       (epoll, what, descriptor, event))
SIMPLE(int, flock, ENOLCK, -1, (int descriptor, int what), (descriptor, what))
SIMPLE(pid_t, fork, EAGAIN, -1, (void), ())
SIMPLE(int, pthread_create, 0, EAGAIN,
       (pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *argument),
       (thread, how, start, argument))

long syscall(long number, ...) {
    REAL(long, "syscall", long, ...);
    if (number == SYS_pidfd_open) FAIL("pidfd_open", EMFILE, -1)
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    return real(number, a, b, c, d, e, f);
}

pid_t waitpid(pid_t pid, int *status, int options) {
    REAL(pid_t, "waitpid", pid_t, int *, int);
    const char *late = getenv("AEMBUS_SHIM_REAP_MS");
    if (late != NULL) usleep(1000 * (useconds_t)atoi(late));
    return real(pid, status, options);
}

/* --- the clock --------------------------------------------------------------------------------- */

enum { NS = 1000000000, SLICE_NS = 2000000 };

static const _Atomic int64_t *wrong_by;

__attribute__((constructor)) static void map_clock(void) {
    const char *path = getenv("AEMBUS_SHIM_CLOCK");
    if (path == NULL) return;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) abort();
    void *mapping = mmap(NULL, sizeof *wrong_by, PROT_READ, MAP_SHARED, descriptor, 0);
    if (mapping == MAP_FAILED) abort();
    close(descriptor);
    wrong_by = mapping;
}

static int64_t error_ns(void) { return wrong_by == NULL ? 0 : *wrong_by; }

static int real_time(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    return real(clock, now);
}

static struct timespec from_ns(int64_t ns) {
    struct timespec time = {.tv_sec = ns / NS, .tv_nsec = ns % NS};
    return time;
}

static int64_t to_ns(const struct timespec *time) {
    return (int64_t)time->tv_sec * NS + time->tv_nsec;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_time(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) *now = from_ns(to_ns(now) + error_ns());
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to != NULL) *to = now.tv_sec;
    return now.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    REAL(int, "sem_timedwait", sem_t *restrict, const struct timespec *restrict);
    if (wrong_by == NULL) return real(semaphore, until);
    for (;;) {
        struct timespec now;
        real_time(CLOCK_REALTIME, &now);
        int64_t left = to_ns(until) - (to_ns(&now) + error_ns());
        if (left < 0) left = 0;
        struct timespec end = from_ns(to_ns(&now) + (left < SLICE_NS ? left : SLICE_NS));
        int result = real(semaphore, &end);
        if (result == 0 || errno != ETIMEDOUT || left <= SLICE_NS) return result;
    }
}
