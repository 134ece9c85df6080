/* The limit of the machine for a ramp: starts so many sleeping processes from two, and ends them again.
 *
 *   hold TASKS
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES 2
#define TASKS_MAX 10000

extern char **environ;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Starts its share, says so, and ends all of it when it is told. */
static void hold(long tasks, int told, int tell) {
    static pid_t pids[TASKS_MAX];
    char *const argv[] = {"/bin/sleep", "120", NULL};
    char byte = 0;
    long started = 0;
    for (; started < tasks; started++) {
        errno = posix_spawn(&pids[started], argv[0], NULL, NULL, argv, environ);
        if (errno) {
            warn("%s", argv[0]);
            byte = 1;
            break;
        }
    }
    if (write(tell, &byte, 1) != 1 || read(told, &byte, 1) < 0) warn("parent");
    for (long i = 0; i < started; i++) kill(pids[i], SIGKILL);
    while (wait(NULL) > 0)
        ;
}

int main(int argc, char **argv) {
    long tasks = argc > 1 ? atol(argv[1]) : 0;
    if (tasks < PROCESSES || tasks > TASKS_MAX) errx(2, "usage: hold TASKS (at most %d)", TASKS_MAX);
    int up[2], down[2];
    if (pipe(up) || pipe(down)) err(1, "pipe");
    double start = now();
    for (int i = 0; i < PROCESSES; i++) {
        pid_t pid = fork();
        if (pid < 0) err(1, "fork");
        if (!pid) {
            close(down[1]);
            hold(tasks / PROCESSES, down[0], up[1]);
            _exit(0);
        }
    }
    int failed = 0;
    for (int i = 0; i < PROCESSES; i++) {
        char byte = 1;
        if (read(up[0], &byte, 1) != 1 || byte) failed = 1;
    }
    double seconds = now() - start;
    start = now();
    close(down[1]);
    while (wait(NULL) > 0)
        ;
    double gone = now() - start;
    if (failed) errx(1, "not all could be started");
    printf("{\"tasks\": %ld, \"seconds\": %.6f, \"tasks_per_s\": %.3f, \"gone_s\": %.6f}\n", tasks, seconds,
        (double)tasks / seconds, gone);
    return 0;
}
