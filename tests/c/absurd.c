/* Every function of the C library, called with what is no argument: null, misaligned and absurd pointers and lengths, handles of another kind,
 * of another thread, in use. Each must say so, and nothing may happen. Under valgrind and sanitizers it also shows that nothing leaks.
 *
 *   absurd AGENT CLIENT [SEED | freed]     the socket directories of a pod that serves and of one that joins; what SEED draws; "freed" also
 *                                          uses handles that were freed, which no sanitizer lets pass
 */
#define _GNU_SOURCE
#include "functions.h"

static unsigned long calls;

static void record(void *user, const podshm_record *record);
static void call(void *user, const podshm_request *request, podshm_answer *answer);
static podshm_handler handler = {sizeof handler, &calls, record, call, NULL};

/* --- what is no argument ---------------------------------------------------------------------------------------------- */

static const uintptr_t NO_ADDRESS[] = {0, 1, 64, 4095, UINTPTR_MAX, UINTPTR_MAX - 15, (uintptr_t)1 << 63, (uintptr_t)1 << 52};
static const uintptr_t NO_LENGTH[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 2 + 1, (uintptr_t)1 << 48};
static const uint64_t BLANK[64];

static char too_long[5001];
static const char NO_UTF_8[] = "rout\xc3";
/* Tables whose authors did not say how large they are, or said what no release's is. */
static podshm_handler WRONG[5];

static void make_what_is_wrong(void)
{
    const size_t sizes[] = {1, sizeof(podshm_handler) - sizeof(void *) - 1, sizeof(podshm_handler) + 1, SIZE_MAX, (size_t)1 << 40};
    memset(too_long, 'r', sizeof too_long - 1);
    for (size_t n = 0; n < sizeof WRONG / sizeof *WRONG; n++) {
        WRONG[n] = handler;
        WRONG[n].size = sizes[n];
    }
}

/* Bad value number `n` for an argument; whether there is one. */
static int bad(char letter, size_t n, int takes_over, uintptr_t *value)
{
    int kind = kind_of(letter);
    size_t addresses = sizeof NO_ADDRESS / sizeof *NO_ADDRESS;
    if (strchr("nimz", letter))
        return 0;
    if (letter == 'f')
        return *value = 0, n == 0;
    if (letter == 'l' || letter == 's')
        return n < sizeof NO_LENGTH / sizeof *NO_LENGTH ? (*value = NO_LENGTH[n], 1) : 0;
    /* Null is none of these where it stands for nothing. */
    if (letter == 'p' || letter == 'q' || takes_over)
        n++;
    if (n < addresses)
        return *value = NO_ADDRESS[n], 1;
    n -= addresses;
    if (letter == 'h' && n >= 2)
        return n -= 2, n < sizeof WRONG / sizeof *WRONG ? (*value = (uintptr_t)&WRONG[n], 1) : 0;
    if (letter == 'h')
        return *value = (n ? (uintptr_t)&handler + 1 : (uintptr_t)BLANK), 1;
    /* Places of more than a byte, and what lies in them, have an alignment. */
    if (strchr("opr", letter))
        return *value = good(letter) + 1 + n, n < 3;
    if (letter == 't' || letter == 'w')
        return *value = (uintptr_t)(n ? NO_UTF_8 : too_long), n < (letter == 't' ? 2 : 1);
    if (kind < 0)
        return 0;
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
    int takes_over = is_free(f);
    for (size_t at = 0; f->arguments[at]; at++) {
        uintptr_t value;
        for (size_t n = 0; bad(f->arguments[at], n, takes_over, &value); n++) {
            uintptr_t a[8] = {0};
            int32_t result;
            for (size_t other = 0; f->arguments[other]; other++)
                a[other] = other == at ? value : good(f->arguments[other]);
            result = apply(f, a);
            calls++;
            if (!is_noticed(result))
                DIE("%s with argument %zu at %#zx: %s", f->name, at + 1, (size_t)value, podshm_result_name(result));
            if (strlen(podshm_last_message()) < 10)
                DIE("%s does not say what is wrong: %s", f->name, podshm_last_message());
        }
    }
}

/* No room, place or time is that large: an error, and not a crash. */
static void absurd_lengths(const struct function *f)
{
    for (size_t at = 0; f->arguments[at]; at++) {
        for (size_t n = 0; f->arguments[at] == 'm' && n < sizeof NO_LENGTH / sizeof *NO_LENGTH; n++) {
            uintptr_t a[8] = {0};
            int32_t result;
            for (size_t other = 0; f->arguments[other]; other++)
                a[other] = other == at ? NO_LENGTH[n] : good(f->arguments[other]);
            result = apply(f, a);
            calls++;
            if (result == PODSHM_OK || result == PODSHM_PANIC)
                DIE("%s with %#zx for a length: %s", f->name, (size_t)NO_LENGTH[n], podshm_last_message());
        }
    }
}

/* Several at once, drawn by `seed`. */
static void many_at_once(uint64_t seed)
{
    for (int round = 0; round < 20000; round++) {
        const struct function *f = &FUNCTIONS[(seed >> 33) % COUNT];
        int takes_over = is_free(f), bads = 0;
        uintptr_t a[8] = {0};
        for (size_t at = 0; f->arguments[at]; at++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            a[at] = good(f->arguments[at]);
            if (kind_of(f->arguments[at]) >= 0 && !handles[kind_of(f->arguments[at])])
                bads++;
            else if ((seed >> 60) < 8)
                bads += bad(f->arguments[at], (seed >> 40) % 24, takes_over, &a[at]);
            /* Times and numbers may be any, beside something that is wrong. */
            if (strchr("in", f->arguments[at]) && (seed >> 60) < 12)
                a[at] = (uintptr_t)(seed >> 60 ? (uint64_t)0 - (seed >> 62) : seed);
        }
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (!bads || (takes_over && !a[0]))
            continue;
        calls++;
        if (!is_noticed(apply(f, a)))
            DIE("%s: not noticed: %s", f->name, podshm_last_message());
    }
}

static void with(char only)
{
    for (size_t n = 0; n < COUNT; n++)
        if (!only || FUNCTIONS[n].arguments[0] == only)
            if (kind_of(FUNCTIONS[n].arguments[0]) < 0 || handles[kind_of(FUNCTIONS[n].arguments[0])]) {
                one_at_a_time(&FUNCTIONS[n]);
                absurd_lengths(&FUNCTIONS[n]);
            }
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
    podshm_deferred *second, *third;
    (void)user;
    if (request->len != 2 || memcmp(request->data, "ab", 2) || request->service.len != 6)
        DIE("another request");
    if (request->time_left_ns != PODSHM_FOREVER)
        DIE("its caller waits for %llu ns", (unsigned long long)request->time_left_ns);
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
    OK(podshm_answer_defer(answer, &third));
    OK(podshm_deferred_fail(third, 99));
    IS(podshm_deferred_fail(third, 99), PODSHM_ENDED);
    OK(podshm_deferred_free(third));
    /* Longer than any answer. */
    releases = 0;
    OK(podshm_answer_reply_with(answer, SIZE_MAX, fills, &releases, released));
    if (releases != 1)
        DIE("released %d times", releases);
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
    OK(podshm_client_new(directory, PODSHM_FOREVER, &client)); /* a time beyond all clocks */
    return client;
}

/* Offers of no size, and of more than there is: the connection says so. */
static void absurd_offers(const char *directory)
{
    const struct { uint64_t first, second; } sizes[] = {
        {0, 0}, {1, UINT64_MAX}, {UINT64_MAX, 1}, {UINT64_MAX, UINT64_MAX}, {(uint64_t)1 << 63, 8},
        {4096, UINT64_MAX}};
    for (size_t n = 0; n < 4 * sizeof sizes / sizeof *sizes; n++) {
        uint64_t first = sizes[n / 4].first, second = sizes[n / 4].second;
        podshm_builder *builder;
        podshm_agent *agent;
        podshm_result result;
        OK(podshm_builder_new(&builder));
        switch (n % 4) {
        case 0: result = podshm_builder_table(builder, "a", first, second); break;
        case 1: result = podshm_builder_queue(builder, "a", (uint32_t)first, (uint32_t)second); break;
        case 2: result = podshm_builder_call(builder, "a", (uint32_t)first, (uint32_t)second); break;
        default: result = podshm_builder_idempotent_call(builder, "a", (uint32_t)first, (uint32_t)second);
        }
        IS(result, PODSHM_OK);
        result = podshm_agent_new(builder, directory, PATIENCE, &agent);
        if (result == PODSHM_OK || result == PODSHM_PANIC)
            DIE("offer %zu: %s: %s", n, podshm_result_name(result), podshm_last_message());
        OK(podshm_agent_free(agent));
        OK(podshm_builder_free(builder));
        calls++;
    }
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
    OK(podshm_agent_new(handles[BUILDER], agent, PODSHM_FOREVER - 1, (podshm_agent **)&handles[AGENT]));
    IS(podshm_agent_inherited_state(handles[AGENT], room, ROOM, (size_t *)room), PODSHM_NOT_YET);
    OK(podshm_writer_new(handles[AGENT], "routes", (podshm_writer **)&handles[WRITER]));
    OK(podshm_writer_put(handles[WRITER], "k", 1, "value", 5));
    OK(podshm_waker_new(handles[AGENT], (podshm_waker **)&handles[WAKER]));
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
    OK(podshm_queue_push(handles[QUEUE], "x", 1, PODSHM_FOREVER, NULL));
    OK(podshm_agent_set_spin(handles[AGENT], PODSHM_FOREVER));
    OK(podshm_agent_wait(handles[AGENT], PODSHM_FOREVER)); /* the record is there */
    OK(podshm_agent_set_spin(handles[AGENT], 0));
    OK(podshm_caller_new(handles[CLIENT], "decide", (podshm_caller **)&handles[CALLER]));
    OK(podshm_caller_start(handles[CALLER], "ab", 2, PODSHM_FOREVER, (podshm_pending **)&handles[PENDING]));
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

/* Frees one, and looks at what functions say of it then: what it was, for as long as nobody else has its memory. */
static bool looks_at_freed;

static void frees(enum kind kind)
{
    const struct function *free = NULL;
    bool is_first = true;
    for (size_t n = 0; n < COUNT; n++)
        if (kind_of(FUNCTIONS[n].arguments[0]) == (int)kind && is_free(&FUNCTIONS[n]))
            free = &FUNCTIONS[n];
    if (!free)
        DIE("nothing frees a %c", LETTERS[kind]);
    IS((podshm_result)call_well(free), PODSHM_OK);
    for (size_t n = 0; n < COUNT && looks_at_freed; n++) {
        if (kind_of(FUNCTIONS[n].arguments[0]) != (int)kind)
            continue;
        IS((podshm_result)call_well(&FUNCTIONS[n]), PODSHM_BAD_HANDLE);
        if (is_first && !strstr(podshm_last_message(), "has been freed"))
            DIE("it is not named: %s", podshm_last_message());
        is_first = false;
        calls++;
    }
    handles[kind] = NULL;
}

int main(int argc, char **argv)
{
    static const podshm_bytes runs[] = {{"x", 1}, {"y", SIZE_MAX}, {"z", 1}};
    uint32_t abi;
    uint64_t seed = 1;
    size_t len;
    alarm(10 * SECONDS);
    if (argc < 3)
        DIE("usage: absurd AGENT CLIENT [SEED | freed]");
    looks_at_freed = argc > 3 && !strcmp(argv[3], "freed");
    if (argc > 3 && !looks_at_freed)
        seed = strtoull(argv[3], NULL, 10);
    good_handler = &handler;
    make_what_is_wrong();
    OK(podshm_abi(&abi));
    if (abi != PODSHM_ABI || strcmp(podshm_version(), "0.1.0"))
        DIE("another library: %s", podshm_version());
    absurd_offers(argv[1]);
    begin(argv[1], argv[2]);
    make();
    with(0);
    many_at_once(seed);
    in_another_thread();
    frees(BATCH);
    IS(podshm_queue_try_push_all(handles[QUEUE], runs, 3, &len), PODSHM_BAD_ARGUMENT);
    if (len != 1)
        DIE("%zu records before the wrong one", len);
    serve(); /* the records */
    if (!handles[DEFERRED])
        serve(); /* the call, which did not come with it */
    IS(podshm_pending_try_take(handles[PENDING], NULL, 0, &len), PODSHM_NOT_YET);
    frees(DEFERRED);
    end_of_call();
    /* A writer may outlive its agent, and everything its client. */
    OK(podshm_agent_close(handles[AGENT], "left", 4));
    frees(AGENT);
    IS(podshm_writer_put(handles[WRITER], "k", 1, "v", 1), PODSHM_ENDED);
    frees(CLIENT);
    OK(podshm_table_get(handles[TABLE], "k", 1, room, ROOM, &len));
    frees(WRITER);
    OK(podshm_waker_wake(handles[WAKER]));
    frees(WAKER);
    frees(PENDING);
    frees(CALLER);
    frees(QUEUE);
    frees(VALUE);
    frees(SNAPSHOT);
    frees(KEY);
    frees(TABLE);
    frees(BUILDER);
    printf("calls %lu\n", calls);
    return 0;
}
