/* The limit of the machine: starts a program many times from two processes, and does what a keeper does around it.
 *
 *   spawn TASKS SLOTS                      only posix_spawn and waiting
 *   spawn TASKS SLOTS DIR AD [BYTES]       with a scratch directory in DIR for each, two ads of AD bytes, files for
 *                                          stdout and stderr, and an executable of BYTES copied into it (0: none)
 *   spawn TASKS SLOTS DIR AD BYTES TARGET  and both streams put into files of their own in TARGET
 *
 * Each process keeps half of the slots busy; for one slot there is one process. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES_MAX 2
#define SLOTS_MAX 512
#define PATH_BYTES 4200
#define PROGRAM "/bin/true"

extern char **environ;

static const char *scratch, *target;
static char *ad, *body;
static int processes = PROCESSES_MAX;
static size_t ad_bytes, body_bytes;
static posix_spawnattr_t attributes;
static posix_spawn_file_actions_t streams;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void put(const char *folder, const char *name, const char *data, size_t length, mode_t mode) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0 || write(fd, data, length) != (ssize_t)length) err(1, "%s", path);
    close(fd);
}

/* Files of a directory: only looked at, or removed. */
static void each_file(const char *folder, int removing) {
    DIR *dir = opendir(folder);
    if (!dir) err(1, "%s", folder);
    struct dirent *entry;
    struct stat status;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.' && (!entry->d_name[1] || !strcmp(entry->d_name, ".."))) continue;
        if (removing ? unlinkat(dirfd(dir), entry->d_name, 0)
                     : fstatat(dirfd(dir), entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
            err(1, "%s/%s", folder, entry->d_name);
    }
    closedir(dir);
}

static pid_t begin(long number) {
    char folder[PATH_BYTES], copy[PATH_BYTES + 20];
    const char *program = PROGRAM;
    posix_spawn_file_actions_t *actions = NULL;
    if (scratch) {
        snprintf(folder, sizeof folder, "%s/%ld", scratch, number);
        if (mkdir(folder, 0700)) err(1, "%s", folder);
        put(folder, ".job.ad", ad, ad_bytes, 0644);
        put(folder, ".machine.ad", ad, ad_bytes / 4, 0644);
        if (body_bytes) {
            put(folder, "program", body, body_bytes, 0755);
            snprintf(copy, sizeof copy, "%s/program", folder);
            program = copy;
        }
        if (chdir(folder)) err(1, "%s", folder);
        actions = &streams;
    }
    char *const argv[] = {(char *)program, NULL};
    pid_t pid;
    errno = posix_spawn(&pid, program, actions, &attributes, argv, environ);
    if (errno) err(1, "%s", program);
    return pid;
}

static void finish(long number) {
    if (!scratch) return;
    char folder[PATH_BYTES], name[64];
    snprintf(folder, sizeof folder, "%s/%ld", scratch, number);
    each_file(folder, 0);
    if (target) {
        snprintf(name, sizeof name, "out.%ld", number);
        put(target, name, "", 0, 0644);
        snprintf(name, sizeof name, "err.%ld", number);
        put(target, name, "", 0, 0644);
    }
    each_file(folder, 1);
    if (rmdir(folder)) err(1, "%s", folder);
}

/* One of the processes: every second number, or every one. */
static void work(long first, long tasks, int slots) {
    struct {
        pid_t pid;
        long number;
    } running[SLOTS_MAX];
    int busy = 0;
    long next = first;
    while (next < tasks || busy) {
        while (busy < slots && next < tasks) {
            running[busy].pid = begin(next);
            running[busy++].number = next;
            next += processes;
        }
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, 0, &usage);
        if (pid < 0 || status) errx(1, "a task ended with %d", status);
        for (int i = 0; i < busy; i++)
            if (running[i].pid == pid) {
                finish(running[i].number);
                running[i] = running[--busy];
                break;
            }
    }
}

static void prepare(int argc, char **argv) {
    sigset_t all;
    sigfillset(&all);
    posix_spawnattr_init(&attributes);
    if (argc < 5) return;
    scratch = argv[3];
    ad_bytes = strtoul(argv[4], NULL, 10);
    ad = malloc(ad_bytes + 1);
    if (!ad) err(1, "memory");
    memset(ad, 'a', ad_bytes);
    body_bytes = argc > 5 ? strtoul(argv[5], NULL, 10) : 0;
    target = argc > 6 ? argv[6] : NULL;
    if (body_bytes) {
        int fd = open(PROGRAM, O_RDONLY | O_CLOEXEC);
        struct stat status;
        if (fd < 0 || fstat(fd, &status)) err(1, PROGRAM);
        body_bytes = (size_t)status.st_size;
        body = malloc(body_bytes);
        if (!body || read(fd, body, body_bytes) != (ssize_t)body_bytes) err(1, PROGRAM);
        close(fd);
    }
    /* A session of its own and default signals, as a keeper gives. */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_init(&streams);
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW;
    posix_spawn_file_actions_addopen(&streams, 1, "stdout", flags, 0644);
    posix_spawn_file_actions_addopen(&streams, 2, "stderr", flags, 0644);
}

int main(int argc, char **argv) {
    if (argc < 3) errx(2, "usage: spawn TASKS SLOTS [DIR AD [BYTES [TARGET]]]");
    long tasks = atol(argv[1]);
    if (atoi(argv[2]) < PROCESSES_MAX) processes = 1;
    int slots = (atoi(argv[2]) + processes - 1) / processes;
    if (slots < 1 || slots > SLOTS_MAX) errx(2, "slots");
    prepare(argc, argv);
    double start = now();
    pid_t pids[PROCESSES_MAX];
    for (int i = 0; i < processes; i++) {
        pids[i] = fork();
        if (pids[i] < 0) err(1, "fork");
        if (!pids[i]) {
            work(i, tasks, slots);
            _exit(0);
        }
    }
    for (int i = 0; i < processes; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) < 0 || status) errx(1, "a process failed");
    }
    double seconds = now() - start;
    printf("{\"tasks\": %ld, \"seconds\": %.6f, \"tasks_per_s\": %.3f}\n", tasks, seconds, (double)tasks / seconds);
    return 0;
}
