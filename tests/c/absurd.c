/* Every function of the C library, called with what is no argument: null, misaligned and absurd pointers and lengths, handles of another kind,
 * of another thread, in use. Each must say so, and nothing may happen. Under valgrind and sanitizers it also shows that nothing leaks.
 *
 *   absurd AGENT CLIENT [freed]     the socket directories of a pod that serves and of one that joins; "freed" also uses handles that
 *                                   were freed, which no sanitizer lets pass
 */
#define _GNU_SOURCE
#include "podshm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECONDS 60ull
#define PATIENCE (SECONDS * 1000000000)
#define DIE(...) (fprintf(stderr, "absurd: "), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define OK(call) do { podshm_result r_ = (call); if (r_ != PODSHM_OK) DIE("%s: %s: %s", #call, podshm_result_name(r_), podshm_last_message()); } while (0)
#define IS(call, expected) do { podshm_result r_ = (call); if (r_ != (expected)) DIE("line %d: %s is %s, expected %s: %s", __LINE__, #call, podshm_result_name(r_), #expected, podshm_last_message()); } while (0)

/* --- what there is ---------------------------------------------------------------------------------------------------- */

enum kind { CLIENT, TABLE, KEY, SNAPSHOT, VALUE, QUEUE, BATCH, CALLER, PENDING, BUILDER, AGENT, WRITER, DEFERRED, ANSWER, KINDS };
static void *handles[KINDS];
static uint64_t aligned[1024];
static unsigned char *const room = (unsigned char *)aligned;
#define ROOM sizeof aligned
static unsigned long calls;

/* Any function, by words. It is called through this type where the calling convention allows: integers and pointers in registers. */
typedef int32_t (*any)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);

/* Arguments: a letter each. Handles are capitals, small ones:
 *   d l   bytes and their length      b s   room and its size     o   place for a result      p   the same, may be null
 *   t     text                        n     a number              f   a function              z   a function or null, or its pointer
 *   h     a table of functions        r     runs of bytes */
struct function {
    const char *name;
    any call;
    const char *arguments;
};
#define F(name, arguments) {#name, (any)(void (*)(void))name, arguments}

static const char LETTERS[] = "CTKSVQBAPUGWDR"; /* by kind */

static const struct function FUNCTIONS[] = {
    F(podshm_abi, "o"), F(podshm_client_new, "tno"), F(podshm_client_free, "C"), F(podshm_client_id, "Co"),
    F(podshm_client_domain, "Co"), F(podshm_client_member, "Co"), F(podshm_client_agent_epoch, "Co"),
    F(podshm_client_agent_present, "Co"), F(podshm_table_new, "Cto"), F(podshm_table_free, "T"),
    F(podshm_table_get, "Tdlbsp"), F(podshm_table_keys, "To"), F(podshm_table_generation, "To"),
    F(podshm_table_version, "To"), F(podshm_table_age, "To"), F(podshm_key_new, "Tdlo"), F(podshm_key_free, "K"),
    F(podshm_key_get, "Kbsp"), F(podshm_snapshot_new, "To"), F(podshm_snapshot_free, "S"),
    F(podshm_snapshot_get, "Sdlbsp"), F(podshm_snapshot_check, "Sp"), F(podshm_value_new, "Tdlo"),
    F(podshm_value_free, "V"), F(podshm_value_len, "Vo"), F(podshm_value_read, "Vnbs"), F(podshm_queue_new, "Cto"),
    F(podshm_queue_free, "Q"), F(podshm_queue_try_push, "Qdlp"), F(podshm_queue_push, "Qdlnp"),
    F(podshm_queue_try_push_with, "Qnfzp"), F(podshm_queue_try_push_all, "Qrlp"), F(podshm_queue_push_or_drop, "Qdlp"), F(podshm_queue_dropped, "Qo"),
    F(podshm_batch_new, "Qo"), F(podshm_batch_try_push, "Bdlp"), F(podshm_batch_publish, "B"),
    F(podshm_batch_free, "B"), F(podshm_caller_new, "Cto"), F(podshm_caller_spinning, "Ano"),
    F(podshm_caller_free, "A"), F(podshm_caller_call, "Adlbsnp"), F(podshm_caller_call_with, "Anfznfzp"),
    F(podshm_caller_start, "Adlno"), F(podshm_caller_event_fd, "Ao"), F(podshm_pending_free, "P"),
    F(podshm_pending_try_take, "Pbsp"), F(podshm_pending_wait, "Pbsp"), F(podshm_pending_arm, "P"),
    F(podshm_builder_new, "o"), F(podshm_builder_free, "U"), F(podshm_builder_table, "Utnn"),
    F(podshm_builder_queue, "Utnn"), F(podshm_builder_call, "Utnn"), F(podshm_builder_idempotent_call, "Utnn"),
    F(podshm_agent_new, "Utno"), F(podshm_agent_free, "G"), F(podshm_agent_ready, "G"), F(podshm_agent_poll, "Ghop"),
    F(podshm_agent_wait, "Gn"), F(podshm_agent_run, "Ghzz"), F(podshm_agent_event_fd, "Go"), F(podshm_agent_park, "Go"),
    F(podshm_agent_set_spin, "Gn"), F(podshm_agent_epoch, "Go"), F(podshm_agent_clients, "Go"),
    F(podshm_agent_inherited_state, "Gbso"), F(podshm_agent_close, "Gdl"), F(podshm_writer_new, "Gto"),
    F(podshm_writer_free, "W"), F(podshm_writer_put, "Wdldl"), F(podshm_writer_remove, "Wdl"),
    F(podshm_writer_put_later, "Wdldl"), F(podshm_writer_remove_later, "Wdl"), F(podshm_writer_publish, "W"),
    F(podshm_writer_touch, "W"), F(podshm_writer_keys, "Wo"), F(podshm_answer_reply, "Rdl"),
    F(podshm_answer_reply_with, "Rnfzz"), F(podshm_answer_fail, "Rn"), F(podshm_answer_defer, "Ro"),
    F(podshm_deferred_reply, "Ddl"), F(podshm_deferred_free, "D"),
};

static const podshm_bytes RUNS[8] = {{"x", 1}};

static void fills(void *user, size_t offset, void *part, size_t len)
{
    (void)user, (void)offset;
    memset(part, 7, len);
}

static void record(void *user, const podshm_record *record);
static void call(void *user, const podshm_request *request, podshm_answer *answer);
static podshm_handler handler = {sizeof handler, &calls, record, call, NULL};

/* --- what is no argument ---------------------------------------------------------------------------------------------- */

static const uintptr_t NO_ADDRESS[] = {0, 1, 64, 4095, UINTPTR_MAX, UINTPTR_MAX - 15, (uintptr_t)1 << 63, (uintptr_t)1 << 52};
static const uintptr_t NO_LENGTH[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 2 + 1, (uintptr_t)1 << 48};
static const uint64_t BLANK[64];

static int kind_of(char letter)
{
    const char *at = strchr(LETTERS, letter);
    return at ? (int)(at - LETTERS) : -1;
}

static uintptr_t good(char letter)
{
    int kind = kind_of(letter);
    if (kind >= 0)
        return (uintptr_t)handles[kind];
    switch (letter) {
    case 'd': case 'b': return (uintptr_t)room;
    case 'r': return (uintptr_t)RUNS;
    case 'l': return 8;
    case 's': return ROOM;
    case 'o': case 'p': return (uintptr_t)room;
    case 't': return (uintptr_t)"routes";
    case 'n': return 8;
    case 'f': return (uintptr_t)fills;
    case 'z': return 0;
    default: return (uintptr_t)&handler;
    }
}

/* Bad value number `n` for an argument; whether there is one. */
static int bad(char letter, size_t n, int takes_over, uintptr_t *value)
{
    int kind = kind_of(letter);
    size_t addresses = sizeof NO_ADDRESS / sizeof *NO_ADDRESS;
    if (letter == 'n' || letter == 'z')
        return 0;
    if (letter == 'f')
        return *value = 0, n == 0;
    if (letter == 'l' || letter == 's')
        return n < sizeof NO_LENGTH / sizeof *NO_LENGTH ? (*value = NO_LENGTH[n], 1) : 0;
    /* Null is none of these where it stands for nothing. */
    if (letter == 'p' || takes_over)
        n++;
    if (n < addresses)
        return *value = NO_ADDRESS[n], 1;
    n -= addresses;
    if (letter == 'h')
        return *value = (n ? (uintptr_t)&handler + 1 : (uintptr_t)BLANK), n < 2;
    if (kind < 0)
        return 0; /* a misaligned place is one for a byte */
    if (n == 0)
        return *value = good(letter) + 1, 1;
    if (n == 1)
        return *value = (uintptr_t)BLANK, 1;
    n -= 2;
    for (int other = 0; other < KINDS; other++)
        if (other != kind && handles[other] && !n--)
            return *value = (uintptr_t)handles[other], 1;
    return 0;
}

static int is_noticed(int32_t result)
{
    return result == PODSHM_BAD_ARGUMENT || result == PODSHM_BAD_HANDLE || result == PODSHM_WRONG_ROLE;
}

/* One bad argument at a time, whatever it is. */
static void one_at_a_time(const struct function *f)
{
    int takes_over = strlen(f->name) > 5 && !strcmp(f->name + strlen(f->name) - 5, "_free");
    for (size_t at = 0; f->arguments[at]; at++) {
        uintptr_t value;
        for (size_t n = 0; bad(f->arguments[at], n, takes_over, &value); n++) {
            uintptr_t a[8] = {0};
            int32_t result;
            for (size_t other = 0; f->arguments[other]; other++)
                a[other] = other == at ? value : good(f->arguments[other]);
            result = f->call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
            calls++;
            if (!is_noticed(result))
                DIE("%s with argument %zu at %#zx: %s", f->name, at + 1, (size_t)value, podshm_result_name(result));
            if (strlen(podshm_last_message()) < 10)
                DIE("%s does not say what is wrong: %s", f->name, podshm_last_message());
        }
    }
}

/* Several at once, drawn by `seed`. */
static void many_at_once(uint64_t seed)
{
    for (int round = 0; round < 20000; round++) {
        const struct function *f = &FUNCTIONS[(seed >> 33) % (sizeof FUNCTIONS / sizeof *FUNCTIONS)];
        int takes_over = strstr(f->name, "_free") != NULL, bads = 0;
        uintptr_t a[8] = {0};
        for (size_t at = 0; f->arguments[at]; at++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            a[at] = good(f->arguments[at]);
            if (kind_of(f->arguments[at]) >= 0 && !handles[kind_of(f->arguments[at])])
                bads++;
            else if ((seed >> 60) < 8)
                bads += bad(f->arguments[at], (seed >> 40) % 20, takes_over, &a[at]);
        }
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (!bads || (takes_over && !a[0]))
            continue;
        calls++;
        if (!is_noticed(f->call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7])))
            DIE("%s: not noticed: %s", f->name, podshm_last_message());
    }
}

static void with(char only)
{
    for (size_t n = 0; n < sizeof FUNCTIONS / sizeof *FUNCTIONS; n++)
        if (!only || FUNCTIONS[n].arguments[0] == only)
            if (kind_of(FUNCTIONS[n].arguments[0]) < 0 || handles[kind_of(FUNCTIONS[n].arguments[0])])
                one_at_a_time(&FUNCTIONS[n]);
}

/* --- who does what when ----------------------------------------------------------------------------------------------- */

static void record(void *user, const podshm_record *record)
{
    size_t count;
    (void)record;
    if (user != &calls)
        DIE("another user pointer");
    IS(podshm_agent_clients(handles[AGENT], &count), PODSHM_BUSY);
    IS(podshm_agent_free(handles[AGENT]), PODSHM_BUSY);
    IS(podshm_writer_touch(handles[WRITER]), PODSHM_BUSY);
}

static void *of_another_thread(void *user)
{
    size_t len;
    (void)user;
    IS(podshm_key_get(handles[KEY], room, ROOM, &len), PODSHM_WRONG_THREAD);
    if (handles[BATCH]) {
        IS(podshm_batch_try_push(handles[BATCH], "x", 1, NULL), PODSHM_WRONG_THREAD);
        IS(podshm_batch_publish(handles[BATCH]), PODSHM_WRONG_THREAD);
        IS(podshm_batch_free(handles[BATCH]), PODSHM_WRONG_THREAD);
    }
    if (handles[ANSWER])
        IS(podshm_answer_fail(handles[ANSWER], 1), PODSHM_WRONG_THREAD);
    return NULL;
}

static void in_another_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, of_another_thread, NULL) || pthread_join(thread, NULL))
        DIE("no thread");
}

static void released(void *user)
{
    ++*(int *)user;
}

static void call(void *user, const podshm_request *request, podshm_answer *answer)
{
    static int releases;
    podshm_deferred *second;
    (void)user;
    if (request->len != 2 || memcmp(request->data, "ab", 2) || request->service.len != 6)
        DIE("another request");
    handles[ANSWER] = answer;
    with('R');
    in_another_thread();
    OK(podshm_answer_defer(answer, (podshm_deferred **)&handles[DEFERRED]));
    with('D');
    /* The first answer counts; what comes after it is let go. */
    OK(podshm_answer_reply_with(answer, 2, fills, &releases, released));
    if (releases != 1)
        DIE("released %d times", releases);
    OK(podshm_answer_reply(answer, "cd", 2));
    OK(podshm_answer_defer(answer, &second));
    OK(podshm_deferred_reply(second, "ef", 2));
    OK(podshm_deferred_free(second));
    handles[ANSWER] = NULL;
}

/* Serves until something was handled. */
static void serve(void)
{
    podshm_progress progress;
    for (int n = 0; n < 60000; n++) {
        OK(podshm_agent_poll(handles[AGENT], &handler, &progress, NULL));
        if (progress == PODSHM_HANDLED)
            return;
        OK(podshm_agent_wait(handles[AGENT], 1000000));
    }
    DIE("nothing comes");
}

static void *joins(void *directory)
{
    podshm_client *client;
    OK(podshm_client_new(directory, PATIENCE, &client));
    return client;
}

static void begin(const char *agent, char *client)
{
    pthread_t thread;
    size_t clients = 0;
    podshm_progress progress;
    OK(podshm_builder_new((podshm_builder **)&handles[BUILDER]));
    OK(podshm_builder_table(handles[BUILDER], "routes", 100, 65536));
    OK(podshm_builder_queue(handles[BUILDER], "reports", PODSHM_DEFAULT_RING, 1024));
    OK(podshm_builder_call(handles[BUILDER], "decide", PODSHM_DEFAULT_CALL_RING, 65536));
    OK(podshm_agent_new(handles[BUILDER], agent, PATIENCE, (podshm_agent **)&handles[AGENT]));
    IS(podshm_agent_inherited_state(handles[AGENT], room, ROOM, (size_t *)room), PODSHM_NOT_YET);
    OK(podshm_writer_new(handles[AGENT], "routes", (podshm_writer **)&handles[WRITER]));
    OK(podshm_writer_put(handles[WRITER], "k", 1, "value", 5));
    OK(podshm_agent_ready(handles[AGENT]));
    if (pthread_create(&thread, NULL, joins, client))
        DIE("no thread");
    while (!clients) {
        OK(podshm_agent_poll(handles[AGENT], &handler, &progress, NULL));
        OK(podshm_agent_wait(handles[AGENT], 1000000));
        OK(podshm_agent_clients(handles[AGENT], &clients));
    }
    pthread_join(thread, &handles[CLIENT]);
}

static void make(void)
{
    size_t len;
    OK(podshm_table_new(handles[CLIENT], "routes", (podshm_table **)&handles[TABLE]));
    OK(podshm_key_new(handles[TABLE], "k", 1, (podshm_key **)&handles[KEY]));
    OK(podshm_key_get(handles[KEY], room, ROOM, &len));
    OK(podshm_snapshot_new(handles[TABLE], (podshm_snapshot **)&handles[SNAPSHOT]));
    OK(podshm_value_new(handles[TABLE], "k", 1, (podshm_value **)&handles[VALUE]));
    OK(podshm_queue_new(handles[CLIENT], "reports", (podshm_queue **)&handles[QUEUE]));
    OK(podshm_caller_new(handles[CLIENT], "decide", (podshm_caller **)&handles[CALLER]));
    OK(podshm_caller_start(handles[CALLER], "ab", 2, PATIENCE, (podshm_pending **)&handles[PENDING]));
    OK(podshm_batch_new(handles[QUEUE], (podshm_batch **)&handles[BATCH]));
    IS(podshm_queue_try_push(handles[QUEUE], "x", 1, NULL), PODSHM_REENTERED);
    OK(podshm_batch_try_push(handles[BATCH], "x", 1, NULL));
}

/* An answer that was promised and not given is a failure. */
static void end_of_call(void)
{
    podshm_progress progress;
    podshm_result result = PODSHM_NOT_YET;
    for (int n = 0; n < 60000 && result == PODSHM_NOT_YET; n++) {
        OK(podshm_agent_poll(handles[AGENT], &handler, &progress, NULL));
        OK(podshm_agent_wait(handles[AGENT], 1000000));
        result = podshm_pending_try_take(handles[PENDING], NULL, 0, NULL);
    }
    IS(result, PODSHM_FAILED);
    if (podshm_last_status() != 1)
        DIE("status %u", (unsigned)podshm_last_status());
    IS(podshm_pending_wait(handles[PENDING], NULL, 0, NULL), PODSHM_ENDED);
}

/* What was freed is named, for as long as nobody else has its memory. */
static void use_what_was_freed(void)
{
    podshm_builder *builder;
    OK(podshm_builder_new(&builder));
    OK(podshm_builder_free(builder));
    IS(podshm_builder_table(builder, "a", 1, 1), PODSHM_BAD_HANDLE);
    if (!strstr(podshm_last_message(), "podshm_builder has been freed"))
        DIE("it is not named: %s", podshm_last_message());
    IS(podshm_builder_free(builder), PODSHM_BAD_HANDLE);
}

int main(int argc, char **argv)
{
    static const podshm_bytes runs[] = {{"x", 1}, {"y", SIZE_MAX}, {"z", 1}};
    uint32_t abi;
    size_t len;
    alarm(10 * SECONDS);
    if (argc < 3)
        DIE("usage: absurd AGENT CLIENT [freed]");
    OK(podshm_abi(&abi));
    if (abi != PODSHM_ABI || strcmp(podshm_version(), "0.1.0"))
        DIE("another library: %s", podshm_version());
    begin(argv[1], argv[2]);
    make();
    with(0);
    many_at_once(1);
    in_another_thread();
    OK(podshm_batch_free(handles[BATCH]));
    handles[BATCH] = NULL;
    IS(podshm_queue_try_push_all(handles[QUEUE], runs, 3, &len), PODSHM_BAD_ARGUMENT);
    if (len != 1)
        DIE("%zu records before the wrong one", len);
    serve(); /* the records */
    if (!handles[DEFERRED])
        serve(); /* the call, which did not come with it */
    IS(podshm_pending_try_take(handles[PENDING], NULL, 0, &len), PODSHM_NOT_YET);
    OK(podshm_deferred_free(handles[DEFERRED]));
    end_of_call();
    /* A writer may outlive its agent, and everything its client. */
    OK(podshm_agent_close(handles[AGENT], "left", 4));
    OK(podshm_agent_free(handles[AGENT]));
    IS(podshm_writer_put(handles[WRITER], "k", 1, "v", 1), PODSHM_ENDED);
    OK(podshm_client_free(handles[CLIENT]));
    OK(podshm_table_get(handles[TABLE], "k", 1, room, ROOM, &len));
    OK(podshm_writer_free(handles[WRITER]));
    OK(podshm_pending_free(handles[PENDING]));
    OK(podshm_caller_free(handles[CALLER]));
    OK(podshm_queue_free(handles[QUEUE]));
    OK(podshm_value_free(handles[VALUE]));
    OK(podshm_snapshot_free(handles[SNAPSHOT]));
    OK(podshm_key_free(handles[KEY]));
    OK(podshm_table_free(handles[TABLE]));
    OK(podshm_builder_free(handles[BUILDER]));
    if (argc > 3)
        use_what_was_freed();
    printf("calls %lu\n", calls);
    return 0;
}
