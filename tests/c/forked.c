/* What a forked child finds: its parent's handles, each of which says PODSHM_FORKED to every function and may be freed, whatever other threads
 * of the parent were doing with it at that moment.
 *
 *   forked AGENT CLIENT     the socket directories of a pod that serves and of one that joins
 */
#define _GNU_SOURCE
#include "functions.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS 200

static sem_t in_handler, leave_handler, in_other, leave_other;
static podshm_builder *busy_builder;
static podshm_writer *busy_writer;
static bool is_over;
static int events;

/* What is its own in a child: it reads and changes its own memory alone, or says so by its result. */
static bool is_local(const struct function *f)
{
    return kind_of(f->arguments[0]) == BUILDER || !strcmp(f->name, "podshm_client_agent_present");
}

static void every_function_says_so(void)
{
    int said = 0;
    for (size_t n = 0; n < COUNT; n++) {
        const struct function *f = &FUNCTIONS[n];
        int kind = kind_of(f->arguments[0]);
        int32_t result;
        if (kind < 0 || !handles[kind] || is_free(f))
            continue;
        result = call_well(f);
        if (is_local(f) ? result == PODSHM_FORKED : result != PODSHM_FORKED)
            DIE("%s in a child is %s: %s", f->name, podshm_result_name(result), podshm_last_message());
        said++;
    }
    if (said < 20)
        DIE("%d functions only", said);
    if (*room)
        DIE("an agent is present in a child");
}

static void all_are_freed(void)
{
    for (size_t n = 0; n < COUNT; n++)
        if (is_free(&FUNCTIONS[n]) && handles[kind_of(FUNCTIONS[n].arguments[0])])
            IS((podshm_result)call_well(&FUNCTIONS[n]), PODSHM_OK);
}

static void in_a_child(void (*look)(void))
{
    int status;
    pid_t child = fork();
    if (child < 0)
        DIE("fork: %s", strerror(errno));
    if (!child) {
        alarm(SECONDS);
        look();
        _exit(0);
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            DIE("waitpid: %s", strerror(errno));
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        DIE("the child ended by signal %d, with %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0, WEXITSTATUS(status));
}

static void look(void)
{
    every_function_says_so();
    if (fcntl(events, F_GETFD) >= 0)
        DIE("the child has its parent's event descriptor");
    all_are_freed();
}

/* From within a handler: the agent is in use by this very thread. */
static void look_in_handler(void)
{
    every_function_says_so();
    IS(podshm_agent_free(handles[AGENT]), PODSHM_OK);
}

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem))
        if (errno != EINTR)
            DIE("sem_wait: %s", strerror(errno));
}

/* Holds the agent. */
static void record(void *user, const podshm_record *record)
{
    (void)user, (void)record;
    sem_post(&in_handler);
    wait_for(&leave_handler);
}

static void call(void *user, const podshm_request *request, podshm_answer *answer)
{
    (void)user, (void)request;
    handles[ANSWER] = answer;
    in_a_child(look_in_handler);
    handles[ANSWER] = NULL;
    OK(podshm_answer_defer(answer, (podshm_deferred **)&handles[DEFERRED]));
    sem_post(&in_handler);
}

/* Has a key and a batch, which are its own. */
static void *other(void *user)
{
    (void)user;
    OK(podshm_key_new(handles[TABLE], "k", 1, (podshm_key **)&handles[KEY]));
    OK(podshm_key_get(handles[KEY], room, ROOM, NULL));
    OK(podshm_batch_new(handles[QUEUE], (podshm_batch **)&handles[BATCH]));
    sem_post(&in_other);
    wait_for(&leave_other);
    OK(podshm_batch_free(handles[BATCH]));
    OK(podshm_key_free(handles[KEY]));
    return NULL;
}

/* Holds the call that is out. */
static void *waits(void *user)
{
    podshm_result result;
    (void)user;
    sem_post(&in_other);
    result = podshm_pending_wait(handles[PENDING], NULL, 0, NULL);
    IS(result, PODSHM_FAILED);
    return NULL;
}

/* Is in one of these most of the time. */
static void *hammers(void *user)
{
    (void)user;
    sem_post(&in_other);
    while (!__atomic_load_n(&is_over, __ATOMIC_ACQUIRE)) {
        podshm_agent *none;
        IS(podshm_agent_new(busy_builder, NULL, 0, &none), PODSHM_BAD_ARGUMENT); /* once it has copied the builder */
        for (int n = 0; n < 100; n++)
            OK(podshm_writer_put_later(busy_writer, "k", 1, "v", 1));
        IS(podshm_writer_publish(busy_writer), PODSHM_BUSY); /* forgets them all the same */
    }
    return NULL;
}

static void look_at_busy_ones(void)
{
    podshm_result result = podshm_builder_table(busy_builder, "busy", 1, 1);
    if (result != PODSHM_OK && result != PODSHM_FORKED)
        DIE("a builder: %s", podshm_last_message());
    IS(podshm_writer_put_later(busy_writer, "k", 1, "v", 1), PODSHM_FORKED);
    OK(podshm_writer_free(busy_writer));
    OK(podshm_builder_free(busy_builder));
}

int main(int argc, char **argv)
{
    const podshm_handler handler = {sizeof handler, NULL, record, call, NULL};
    struct serving serving = {.handler = &handler};
    pthread_t threads[3];
    alarm(5 * SECONDS);
    if (argc != 3)
        DIE("usage: forked AGENT CLIENT");
    good_handler = &handler;
    serving.directory = argv[1];
    connect_agent(&serving);
    handles[AGENT] = serving.agent;
    handles[WRITER] = serving.writer;
    OK(podshm_waker_new(serving.agent, (podshm_waker **)&handles[WAKER]));
    OK(podshm_writer_new(serving.agent, "routes", &busy_writer));
    OK(podshm_builder_new(&busy_builder));
    for (int n = 0; n < 2000; n++)
        OK(podshm_builder_table(busy_builder, "busy", 1, 1));
    OK(podshm_builder_new((podshm_builder **)&handles[BUILDER]));
    serve_in_a_thread(&serving);
    OK(podshm_client_new(argv[2], PATIENCE, (podshm_client **)&handles[CLIENT]));
    OK(podshm_table_new(handles[CLIENT], "routes", (podshm_table **)&handles[TABLE]));
    OK(podshm_snapshot_new(handles[TABLE], (podshm_snapshot **)&handles[SNAPSHOT]));
    OK(podshm_value_new(handles[TABLE], "k", 1, (podshm_value **)&handles[VALUE]));
    OK(podshm_queue_new(handles[CLIENT], "reports", (podshm_queue **)&handles[QUEUE]));
    OK(podshm_caller_new(handles[CLIENT], "decide", (podshm_caller **)&handles[CALLER]));
    OK(podshm_caller_event_fd(handles[CALLER], &events));
    OK(podshm_caller_start(handles[CALLER], "ab", 2, PATIENCE, (podshm_pending **)&handles[PENDING]));
    wait_for(&in_handler); /* the call is put off */
    OK(podshm_queue_push(handles[QUEUE], "x", 1, PATIENCE, NULL));
    wait_for(&in_handler); /* the agent is held */
    if (pthread_create(&threads[0], NULL, other, NULL) || pthread_create(&threads[1], NULL, waits, NULL))
        DIE("no thread");
    wait_for(&in_other);
    wait_for(&in_other);
    usleep(50000); /* it waits by now */
    in_a_child(look);

    if (pthread_create(&threads[2], NULL, hammers, NULL))
        DIE("no thread");
    wait_for(&in_other);
    for (int n = 0; n < FORKS; n++)
        in_a_child(look_at_busy_ones);
    __atomic_store_n(&is_over, true, __ATOMIC_RELEASE);
    pthread_join(threads[2], NULL);

    /* The parent's are what they were. */
    sem_post(&leave_other);
    pthread_join(threads[0], NULL);
    OK(podshm_deferred_free(handles[DEFERRED]));
    sem_post(&leave_handler);
    pthread_join(threads[1], NULL);
    OK(podshm_table_get(handles[TABLE], "k", 1, room, ROOM, NULL));
    OK(podshm_pending_free(handles[PENDING]));
    OK(podshm_caller_free(handles[CALLER]));
    OK(podshm_queue_free(handles[QUEUE]));
    OK(podshm_value_free(handles[VALUE]));
    OK(podshm_snapshot_free(handles[SNAPSHOT]));
    OK(podshm_table_free(handles[TABLE]));
    OK(podshm_client_free(handles[CLIENT]));
    OK(podshm_builder_free(handles[BUILDER]));
    OK(podshm_waker_free(handles[WAKER]));
    OK(podshm_writer_free(busy_writer));
    OK(podshm_builder_free(busy_builder));
    stop_serving(&serving);
    puts("done");
    return 0;
}
