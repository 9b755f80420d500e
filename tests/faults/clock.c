/* A wall clock that can be set, for one process and its children: LD_PRELOAD this, see tests/faults/clock.py.

   The file named by CLOCK_STEPS holds steps: how many there are, then of each since when it holds, in nanoseconds of the
   real clock, and how far the clock of these processes is then from the real one. Processes look at it at every call.

   A kernel whose clock is set stamps files with it. So what is written here is stamped with this clock, and the time of
   a change, which nobody can set, is told as this clock showed it then. Times that are set with utime are as they are
   set. Clocks that are not the wall clock are as they are. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000LL

struct steps {
    _Atomic int64_t count;
    struct { int64_t since, offset; } step[4096];
};

static struct steps *steps;

__attribute__((constructor)) static void open_steps(void) {
    const char *path = getenv("CLOCK_STEPS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) _exit(99); /* the real clock would spoil the result unseen */
    void *mapped = mmap(NULL, sizeof *steps, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) _exit(99);
    steps = mapped;
    close(fd);
}

/* How far this clock was from the real one at a time of the real one. */
static int64_t offset_at(int64_t real) {
    if (!steps) return 0;
    for (int64_t number = atomic_load(&steps->count); number > 0; number--)
        if (steps->step[number - 1].since <= real) return steps->step[number - 1].offset;
    return 0;
}

static int64_t real_now(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return now.tv_sec * BILLION + now.tv_nsec;
}

static struct timespec shown(int64_t real) {
    int64_t time = real + offset_at(real);
    return (struct timespec){time / BILLION, time % BILLION};
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return syscall(SYS_clock_gettime, clock, time);
    *time = shown(real_now(clock));
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now = shown(real_now(CLOCK_REALTIME));
    *time = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *result) {
    struct timespec now = shown(real_now(CLOCK_REALTIME));
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t written = syscall(SYS_write, fd, data, size);
    struct stat status;
    if (written > 0 && syscall(SYS_fstat, fd, &status) == 0 && S_ISREG(status.st_mode)) {
        struct timespec times[2] = {{0, UTIME_OMIT}, shown(real_now(CLOCK_REALTIME))};
        syscall(SYS_utimensat, fd, NULL, times, 0);
    }
    return written;
}

static int told(int result, struct stat *status) {
    if (result == 0) status->st_ctim = shown(status->st_ctim.tv_sec * BILLION + status->st_ctim.tv_nsec);
    return result;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int stat(const char *restrict path, struct stat *restrict status) { return told(REAL(stat)(path, status), status); }
int lstat(const char *restrict path, struct stat *restrict status) { return told(REAL(lstat)(path, status), status); }
int fstat(int fd, struct stat *status) { return told(REAL(fstat)(fd, status), status); }
int fstatat(int fd, const char *restrict path, struct stat *restrict status, int flags) {
    return told(REAL(fstatat)(fd, path, status, flags), status);
}

/* The same under the names that files of 64 bits had. */
int stat64(const char *restrict, struct stat64 *restrict) __attribute__((alias("stat")));
int lstat64(const char *restrict, struct stat64 *restrict) __attribute__((alias("lstat")));
int fstat64(int, struct stat64 *) __attribute__((alias("fstat")));
int fstatat64(int, const char *restrict, struct stat64 *restrict, int) __attribute__((alias("fstatat")));
