/* Preloaded before libc: counts the calls that change files below a folder, and makes the k-th of
 * them the scene of an accident. Armed by the process itself: see faultfs.py. Everything that is not
 * below the folder, and everything before arming, goes straight through.
 *
 *   cc -shared -fPIC -O1 -o faultfs.so faultfs.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, TEAR, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SHORT };
enum { OP_CREATE = 1, OP_WRITE, OP_TRUNCATE, OP_SYNC, OP_RENAME, OP_UNLINK, OP_MKDIR, OP_RMDIR, OP_LINK, OP_MARK };

static char prefix[PATH_MAX];
static long target, calls;
static int mode, error_number, log_fd = -1;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faultfs_arm(const char *folder, long k, int how, int error, int log) {
    strncpy(prefix, folder, sizeof prefix - 1);
    target = k, mode = how, error_number = error, log_fd = log, calls = 0;
}
void faultfs_disarm(void) { prefix[0] = 0; }
long faultfs_calls(void) { return calls; }

static int below(const char *path) {
    size_t length = strlen(prefix);
    return length && !strncmp(path, prefix, length) && (path[length] == '/' || path[length] == 0);
}

static int path_at(int folder, const char *name, char *out) {
    if (name[0] == '/') { snprintf(out, PATH_MAX, "%s", name); return below(out); }
    char link[64], base[PATH_MAX];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, name);
    return below(out);
}
static int path_of(int fd, char *out) {
    char link[64];
    if (!prefix[0] || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return below(out);
}
void faultfs_mark(long number);
static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}
/* What is to happen to this call: 0 as always, -1 fail with errno, 1 kill in the middle, 2 short. */
static int enter(int op) {
    calls++;
    if (mode == NOTHING || calls < target || (calls > target && mode != FAIL_FROM)) return 0;
    if (mode == KILL_BEFORE) die();
    if (mode == FAIL_ONCE || mode == FAIL_FROM) {
        errno = error_number;
        return -1;
    }
    if (mode == TEAR) { if (op == OP_WRITE) return 1; die(); }
    if (mode == SHORT && op == OP_WRITE) return 2;
    return 0;
}
static void record(int op, int failed, const char *one, const char *two, int64_t offset, int64_t size, const void *data) {
    int error = errno;
    if (failed) op = -op, size = 0, data = 0;
    if (log_fd >= 0) {
        int64_t head[6] = {op, (int64_t)strlen(one), two ? (int64_t)strlen(two) : 0, offset, size, data ? size : 0};
        __typeof__(&write) put = REAL(write);
        if (put(log_fd, head, sizeof head) < 0 || put(log_fd, one, head[1]) < 0) die();
        if (two && put(log_fd, two, head[2]) < 0) die();
        if (data && put(log_fd, data, size) < 0) die();
    }
    if (mode == KILL_AFTER && calls == target) die();
    errno = error;
}
void faultfs_mark(long number) { record(OP_MARK, 0, "", 0, number, 0, 0); }

static ssize_t put(int fd, const void *data, size_t size, off_t offset, int positioned) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return positioned ? REAL(pwrite)(fd, data, size, offset) : REAL(write)(fd, data, size);
    int fate = enter(OP_WRITE);
    if (fate < 0) return -1;
    if (fate > 0) size = size > 1 ? size * 2 / 3 : size;
    if (!positioned) offset = lseek(fd, 0, SEEK_CUR);
    ssize_t count = positioned ? REAL(pwrite)(fd, data, size, offset) : REAL(write)(fd, data, size);
    if (fate == 1) die();
    record(OP_WRITE, count < 0, path, 0, offset, count, data);
    return count;
}
ssize_t write(int fd, const void *data, size_t size) { return put(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return put(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return put(fd, data, size, offset, 1); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    char path[PATH_MAX], data[1 << 16];
    if (!path_of(out, path)) return REAL(copy_file_range)(in, from, out, to, size, flags);
    int fate = enter(OP_WRITE);
    if (fate < 0) return -1;
    if (fate > 0) size = size > 1 ? size * 2 / 3 : size;
    if (size > sizeof data) size = sizeof data;
    off64_t start = to ? *to : lseek(out, 0, SEEK_CUR);
    ssize_t count = REAL(copy_file_range)(in, from, out, to, size, flags);
    if (fate == 1) die();
    if (count > 0 && pread(out, data, count, start) != count) die();
    record(OP_WRITE, count <= 0, path, 0, start, count, data);
    return count;
}

static int truncate_open(int fd, off_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(ftruncate)(fd, size);
    if (enter(OP_TRUNCATE) < 0) return -1;
    int result = REAL(ftruncate)(fd, size);
    record(OP_TRUNCATE, result, path, 0, 0, size, 0);
    return result;
}
int ftruncate(int fd, off_t size) { return truncate_open(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_open(fd, size); }

static int sync_open(int fd, int data_only) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return data_only ? REAL(fdatasync)(fd) : REAL(fsync)(fd);
    if (enter(OP_SYNC) < 0) {
        int error = errno;
        if (strstr(path, "/data.h5") || strstr(path, "/journal")) faultfs_mark(-1);
        errno = error;
        return -1;
    }
    record(OP_SYNC, 0, path, 0, 0, 0, 0); /* what a real disk would do, is simulated */
    return 0;
}
int fsync(int fd) { return sync_open(fd, 0); }
int fdatasync(int fd) { return sync_open(fd, 1); }

static int open_at(int folder, const char *name, int flags, mode_t permissions) {
    char path[PATH_MAX];
    struct stat facts;
    int watched = (flags & (O_CREAT | O_TRUNC)) && path_at(folder, name, path);
    int exists = watched && stat(path, &facts) == 0;
    if (!watched || (exists && !(flags & O_TRUNC))) return REAL(openat)(folder, name, flags, permissions);
    if (enter(exists ? OP_TRUNCATE : OP_CREATE) < 0) return -1;
    int fd = REAL(openat)(folder, name, flags, permissions);
    record(exists ? OP_TRUNCATE : OP_CREATE, fd < 0, path, 0, 0, 0, 0);
    return fd;
}
#define MODE(flags) \
    mode_t permissions = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); permissions = va_arg(rest, mode_t); va_end(rest); }
int open(const char *name, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, name, flags, permissions); }
int open64(const char *name, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, name, flags, permissions); }
int openat(int folder, const char *name, int flags, ...) {
    MODE(flags)
    char path[PATH_MAX];
    if (!((flags & (O_CREAT | O_TRUNC)) && path_at(folder, name, path)))
        return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat"))(folder, name, flags, permissions);
    return open_at(folder, name, flags, permissions);
}
int openat64(int folder, const char *name, int flags, ...) { MODE(flags) return openat(folder, name, flags, permissions); }

#define ON_PATHS(op, call, folder, name, other_folder, other) \
    char one[PATH_MAX], two[PATH_MAX] = ""; \
    int watched = path_at(folder, name, one); \
    const char *second = other; \
    if (second) watched |= path_at(other_folder, second, two); \
    if (!watched) return call; \
    if (enter(op) < 0) return -1; \
    int result = call; \
    record(op, result, one, two, 0, 0, 0); \
    return result;
#define NONE ((const char *)NULL)
int rename(const char *a, const char *b) { ON_PATHS(OP_RENAME, REAL(rename)(a, b), AT_FDCWD, a, AT_FDCWD, b) }
int renameat(int da, const char *a, int db, const char *b) { ON_PATHS(OP_RENAME, REAL(renameat)(da, a, db, b), da, a, db, b) }
int link(const char *a, const char *b) { ON_PATHS(OP_LINK, REAL(link)(a, b), AT_FDCWD, a, AT_FDCWD, b) }
int unlink(const char *a) { ON_PATHS(OP_UNLINK, REAL(unlink)(a), AT_FDCWD, a, 0, NONE) }
int unlinkat(int da, const char *a, int flags) {
    ON_PATHS((flags & AT_REMOVEDIR) ? OP_RMDIR : OP_UNLINK, REAL(unlinkat)(da, a, flags), da, a, 0, NONE)
}
int rmdir(const char *a) { ON_PATHS(OP_RMDIR, REAL(rmdir)(a), AT_FDCWD, a, 0, NONE) }
int mkdir(const char *a, mode_t m) { ON_PATHS(OP_MKDIR, REAL(mkdir)(a, m), AT_FDCWD, a, 0, NONE) }
int mkdirat(int da, const char *a, mode_t m) { ON_PATHS(OP_MKDIR, REAL(mkdirat)(da, a, m), da, a, 0, NONE) }
