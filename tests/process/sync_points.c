/* Counts the calls of fsync and fdatasync of a process and its children, and lets one of them go wrong. For LD_PRELOAD.
 *
 * SYNC_ROOTS   directories, with colons between them: only files below them count
 * SYNC_COUNT   a file of 8 bytes, shared by all processes: the number of calls so far
 * SYNC_LOG     a file that gets a line for each call: number, process, path
 * SYNC_ONLY    how the path must end for a call to count; any will do without it
 * SYNC_AT      which call goes wrong
 * SYNC_HOW     "before", "after": the process that calls is killed; "power": all of its group, before the call;
 *              "error": the call fails with EIO, and does nothing
 * SYNC_SHADOW  a directory that gets what a power cut would leave: data/INODE, the content of each file when it was
 *              last synced, and folders/INODE, the names in each directory when it was ("INODE NAME" a line)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int below_roots(int fd, char *path) {
    char link[64];
    const char *roots = getenv("SYNC_ROOTS"), *end = getenv("SYNC_ONLY");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0 || !roots)
        return 0;
    path[size] = 0;
    if (end && ((size_t)size < strlen(end) || strcmp(path + size - strlen(end), end)))
        return 0;
    while (*roots) {
        size_t length = strcspn(roots, ":");
        if (length && !strncmp(path, roots, length) && (path[length] == '/' || !path[length]))
            return 1;
        roots += length + (roots[length] == ':');
    }
    return 0;
}

static uint64_t count(void) {
    static volatile uint64_t *shared;
    if (!shared) {
        int fd = open(getenv("SYNC_COUNT"), O_RDWR | O_CLOEXEC);
        void *found = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (found == MAP_FAILED)
            return 0;
        close(fd);
        shared = found;
    }
    return __atomic_add_fetch(shared, 1, __ATOMIC_SEQ_CST);
}

static void say(uint64_t number, const char *path) {
    char line[PATH_MAX + 64];
    int fd = open(getenv("SYNC_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    int size = snprintf(line, sizeof line, "%llu %d %s\n", (unsigned long long)number, getpid(), path);
    if (fd >= 0) {
        if (write(fd, line, size) < 0)
            abort();
        close(fd);
    }
}

static void keep_names(int fd, FILE *file) {
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = again < 0 ? NULL : fdopendir(again);
    struct dirent *entry;
    while (names && (entry = readdir(names)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            fprintf(file, "%llu %s\n", (unsigned long long)entry->d_ino, entry->d_name);
    if (names)
        closedir(names);
}

static void keep_data(int fd, FILE *file) {
    static __thread char buffer[1 << 16];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int again = open(link, O_RDONLY | O_CLOEXEC);
    ssize_t size;
    while (again >= 0 && (size = read(again, buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, size, file);
    if (again >= 0)
        close(again);
}

static void keep(int fd, const char *path) {
    const char *shadow = getenv("SYNC_SHADOW"), *name = strrchr(path, '/');
    struct stat facts;
    char target[PATH_MAX + 64], part[PATH_MAX + 96];
    if (!shadow || fstat(fd, &facts) || (name && !strcmp(name, "/ballast")))
        return;
    int is_folder = S_ISDIR(facts.st_mode);
    snprintf(target, sizeof target, "%s/%s/%llu", shadow, is_folder ? "folders" : "data", (unsigned long long)facts.st_ino);
    snprintf(part, sizeof part, "%s.%d.%p", target, getpid(), (void *)&facts);
    FILE *file = fopen(part, "we");
    if (!file)
        abort();
    if (is_folder)
        keep_names(fd, file);
    else
        keep_data(fd, file);
    if (fclose(file) || rename(part, target))
        abort();
}

static int sync_point(int fd, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char path[PATH_MAX];
    if (!below_roots(fd, path))
        return real(fd);
    const char *at = getenv("SYNC_AT"), *how = getenv("SYNC_HOW");
    uint64_t number = count();
    int is_it = at && how && number == strtoull(at, NULL, 10);
    say(number, path);
    if (is_it && !strcmp(how, "error")) {
        errno = EIO;
        return -1;
    }
    if (is_it && strcmp(how, "after"))
        kill(strcmp(how, "power") ? getpid() : 0, SIGKILL);
    int result = real(fd);
    if (!result)
        keep(fd, path);
    if (is_it)
        kill(getpid(), SIGKILL);
    return result;
}

int fsync(int fd) { return sync_point(fd, "fsync"); }
int fdatasync(int fd) { return sync_point(fd, "fdatasync"); }
