/* Drives Work Queue from C, its own language: no interpreter stands between us and it.
 *
 *   workqueue rate TASKS CORES BEHIND WINDOW   /bin/true, at most WINDOW of them submitted and not yet returned
 *   workqueue latency TASKS CORES BEHIND       one at a time
 *   workqueue queued TASKS                     memory of tasks that wait
 *   workqueue ramp TASKS CORES                 sleeping tasks, until it is ended
 *
 * BEHIND other tasks wait meanwhile that need more cores than any worker has. Prints the port, waits for a worker with
 * so many cores, and prints one JSON object.
 */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "work_queue.h"

#define WARM_UP 50
#define JOIN_S 60

static struct work_queue *queue;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + 1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static long resident_bytes(void) {
    long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &size, &resident) != 2) err(1, "statm");
    fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

static void submit_wide(const char *command, int cores) {
    struct work_queue_task *task = work_queue_task_create(command);
    work_queue_task_specify_cores(task, cores);
    work_queue_task_specify_memory(task, 1);
    work_queue_task_specify_disk(task, 1);
    work_queue_submit(queue, task);
}

static void submit(const char *command) {
    submit_wide(command, 1);
}

static void take(void) {
    struct work_queue_task *task;
    while (!(task = work_queue_wait(queue, 5)))
        ;
    if (task->result != WORK_QUEUE_RESULT_SUCCESS || task->return_status)
        errx(1, "a task failed: %d %d", task->result, task->return_status);
    work_queue_task_delete(task);
}

static void wait_for_worker(long cores) {
    struct work_queue_stats stats;
    double end = now() + JOIN_S;
    do {
        if (now() > end) errx(1, "no worker with %ld cores came", cores);
        work_queue_wait(queue, 1);
        work_queue_get_stats(queue, &stats);
    } while (stats.total_cores < cores);
}

static void run(long tasks, long window) {
    long submitted = 0, taken = 0;
    while (taken < tasks) {
        while (submitted < tasks && submitted - taken < window) {
            submit("/bin/true");
            submitted++;
        }
        take();
        taken++;
    }
}

static void rate(long tasks, long cores, long behind, long window) {
    wait_for_worker(cores);
    run(WARM_UP, window);
    for (long i = 0; i < behind; i++) submit_wide("/bin/true", 100000);
    double start = now(), busy = cpu();
    run(tasks, window);
    double seconds = now() - start;
    printf("{\"tasks\": %ld, \"seconds\": %.6f, \"tasks_per_s\": %.3f, \"cpu_us\": {\"manager\": %.3f}}\n", tasks,
        seconds, (double)tasks / seconds, 1e6 * (cpu() - busy) / (double)tasks);
}

static void latency(long tasks, long cores, long behind) {
    wait_for_worker(cores);
    run(WARM_UP, 1);
    for (long i = 0; i < behind; i++) submit_wide("/bin/true", 100000);
    printf("{\"ms\": [");
    for (long i = 0; i < tasks; i++) {
        double start = now();
        submit("/bin/true");
        take();
        printf("%s%.4f", i ? ", " : "", 1e3 * (now() - start));
    }
    printf("]}\n");
}

static void queued(long tasks) {
    long before = resident_bytes();
    double start = now();
    for (long i = 0; i < tasks; i++) submit("/bin/true");
    double seconds = now() - start;
    printf("{\"tasks\": %ld, \"seconds\": %.6f, \"tasks_per_s\": %.3f, \"bytes_per_task\": %.1f}\n", tasks, seconds,
        (double)tasks / seconds, (double)(resident_bytes() - before) / (double)tasks);
}

static void ramp(long tasks, long cores) {
    wait_for_worker(cores);
    puts("{\"ready\": 1}");
    fflush(stdout);
    for (long i = 0; i < tasks; i++) submit("/bin/sleep 120");
    /* Until our parent has counted them and ends us. */
    for (;;) work_queue_wait(queue, 1);
}

int main(int argc, char **argv) {
    if (argc < 3) errx(2, "usage: workqueue rate|latency|queued|ramp TASKS ...");
    long words[4] = {0};
    for (int i = 2; i < argc && i < 6; i++) words[i - 2] = atol(argv[i]);
    queue = work_queue_create(0);
    if (!queue) errx(1, "no queue");
    printf("{\"port\": %d}\n", work_queue_port(queue));
    fflush(stdout);
    if (!strcmp(argv[1], "rate")) rate(words[0], words[1], words[2], words[3]);
    else if (!strcmp(argv[1], "latency")) latency(words[0], words[1], words[2]);
    else if (!strcmp(argv[1], "queued")) queued(words[0]);
    else if (!strcmp(argv[1], "ramp")) ramp(words[0], words[1]);
    else errx(2, "%s", argv[1]);
    fflush(stdout);
    work_queue_delete(queue);
    return 0;
}
