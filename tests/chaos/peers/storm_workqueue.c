/* An application on Work Queue: runs the commands it reads, one a line, at most 50 at a time, and prints the number of
 * each that was reported to it as done. First it prints the port. */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "work_queue.h"

#define WINDOW 50

int main(void) {
    struct work_queue *queue = work_queue_create(0);
    if (!queue) err(1, "work_queue_create");
    printf("%d\n", work_queue_port(queue));
    fflush(stdout);
    char line[4096], name[32];
    int waiting = 0, number = 0, more = 1;
    while (more || waiting) {
        while (more && waiting < WINDOW) {
            if (!fgets(line, sizeof line, stdin)) {
                more = 0;
                break;
            }
            line[strcspn(line, "\n")] = 0;
            struct work_queue_task *task = work_queue_task_create(line);
            snprintf(name, sizeof name, "%d", number++);
            work_queue_task_specify_tag(task, name);
            work_queue_task_specify_cores(task, 1);
            work_queue_task_specify_memory(task, 1);
            work_queue_task_specify_disk(task, 1);
            work_queue_submit(queue, task);
            waiting++;
        }
        struct work_queue_task *done = work_queue_wait(queue, 1);
        if (done) {
            printf("%s %d\n", done->tag, done->result == WORK_QUEUE_RESULT_SUCCESS ? done->return_status : -1);
            fflush(stdout);
            work_queue_task_delete(done);
            waiting--;
        }
    }
    work_queue_delete(queue);
    return 0;
}
