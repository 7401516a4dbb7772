/* The agent's half of the conformance suite in C. */
#define _GNU_SOURCE
#include "conform.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A record that was handled and that nobody has asked for yet. */
struct kept {
    char queue[32];
    size_t len;
    unsigned char *data;
};

static podshm_agent *agent;
static int serves, parts, closed;
/* Bytes that an answer has beyond its request's. */
static size_t more;
static char how[32] = "at-once", behind[MOST_ANSWER];
static struct kept *kept;
static size_t kept_count;
/* A request that comes part by part. */
static unsigned char gathered[1 << 17];
/* Handlers run while it is used elsewhere as well: never, in a correct library. */
static int in_handler;

#define PATIENCE (20ull * 1000000000)

/* --- what it does with what comes ------------------------------------------------------------------------------------ */

static void record(void *user, const podshm_record *record)
{
    struct kept *new;
    if (user != (void *)&kept || in_handler++)
        die("a handler", "is called with another's pointer or within itself");
    kept = realloc(kept, (kept_count + 1) * sizeof *kept);
    new = &kept[kept_count++];
    snprintf(new->queue, sizeof new->queue, "%.*s", (int)record->service.len, record->service.data);
    new->len = record->len;
    new->data = malloc(record->len + 1);
    if (record->len)
        memcpy(new->data, record->data, record->len);
    in_handler--;
}

struct later {
    podshm_deferred *deferred;
    uint32_t fails;
    size_t len;
    unsigned char bytes[];
};

static void *answer_later(void *user)
{
    struct later *later = user;
    struct timespec some = {0, 5000000};
    nanosleep(&some, NULL);
    if (later->fails ? podshm_deferred_fail(later->deferred, later->fails)
                     : podshm_deferred_reply(later->deferred, later->bytes, later->len))
        die("a deferred answer", podshm_last_message());
    if (podshm_deferred_reply(later->deferred, later->bytes, later->len) != PODSHM_ENDED ||
        podshm_deferred_fail(later->deferred, 16) != PODSHM_ENDED)
        die("a deferred answer", "is given twice");
    podshm_deferred_free(later->deferred);
    free(later);
    return NULL;
}

static void fill(void *user, size_t offset, void *part, size_t len)
{
    memcpy(part, (unsigned char *)user + offset, len);
}

static bool part(void *user, const podshm_request *request, size_t offset)
{
    (void)user;
    if (strcmp(how, "parts"))
        return false;
    memcpy(gathered + offset, request->data, request->len);
    parts++;
    return true;
}

static void call(void *user, const podshm_request *request, podshm_answer *answer)
{
    const unsigned char *asked = request->data;
    size_t len = request->total;
    struct later *later;
    pthread_t thread;
    podshm_result result = PODSHM_OK;
    if (user != (void *)&kept || in_handler++)
        die("a handler", "is called with another's pointer or within itself");
    if (!request->len)
        asked = gathered;
    later = calloc(1, sizeof *later + len + more);
    for (size_t at = 0; at < len; at++)
        later->bytes[at] = asked[len - 1 - at];
    len += more;
    later->len = len;
    if (!strcmp(how, "hang")) {
        hang();
    } else if (!strncmp(how, "fail:", 5)) {
        result = podshm_answer_fail(answer, (uint32_t)strtoul(how + 5, NULL, 10));
    } else if (!strcmp(how, "later") || !strncmp(how, "late-fail:", 10)) {
        later->fails = *(how + 4) == '-' ? (uint32_t)strtoul(how + 10, NULL, 10) : 0;
        result = podshm_answer_defer(answer, &later->deferred);
        if (pthread_create(&thread, NULL, answer_later, later))
            die("pthread_create", "no thread");
        pthread_detach(thread);
        later = NULL;
    } else if (!strcmp(how, "in-place")) {
        unsigned char *reversed = malloc(len + 1);
        memcpy(reversed, later->bytes, len);
        result = podshm_answer_reply_with(answer, len, fill, reversed, free);
    } else if (strcmp(how, "nothing")) {
        result = podshm_answer_reply(answer, later->bytes, len);
    }
    if (result != PODSHM_OK)
        die("an answer", podshm_last_message());
    free(later);
    in_handler--;
}

static const podshm_handler handler = {sizeof handler, &kept, record, call, part};

static podshm_result poll_once(podshm_progress *progress)
{
    return podshm_agent_poll(agent, &handler, progress, NULL);
}

int agent_round(void)
{
    podshm_progress progress;
    podshm_result result;
    if (!serves || !agent)
        return 0;
    result = poll_once(&progress);
    if (result == PODSHM_OK && progress == PODSHM_IDLE)
        result = podshm_agent_wait(agent, 1000000);
    else if (result == PODSHM_OK && progress == PODSHM_CLOSE_ASKED) {
        result = podshm_agent_close(agent, behind, strlen(behind));
        serves = 0, closed = 1;
    }
    if (result != PODSHM_OK)
        die("serving", podshm_last_message());
    return serves;
}

/* --- commands -------------------------------------------------------------------------------------------------------- */

static void connect_agent(struct command *c, const char *directory)
{
    podshm_builder *builder;
    if (!say(c, podshm_builder_new(&builder), 0))
        return;
    for (int n = 1; n < c->count; n++) {
        char name[80], kind[32];
        unsigned long first, second;
        podshm_result result;
        if (sscanf(word(c, n), "%79[^:]:%31[^:]:%lu:%lu", name, kind, &first, &second) != 4)
            die("no service", word(c, n));
        if (!strcmp(kind, "table"))
            result = podshm_builder_table(builder, name, first, second);
        else if (!strcmp(kind, "queue"))
            result = podshm_builder_queue(builder, name, (uint32_t)first, (uint32_t)second);
        else if (!strcmp(kind, "call"))
            result = podshm_builder_call(builder, name, (uint32_t)first, (uint32_t)second);
        else
            result = podshm_builder_idempotent_call(builder, name, (uint32_t)first, (uint32_t)second);
        if (!say(c, result, 0))
            return;
    }
    say(c, podshm_agent_new(builder, directory, PATIENCE, &agent), 0);
    podshm_builder_free(builder);
}

static void publish(struct command *c)
{
    static unsigned char value[1 << 17];
    const char *what = word(c, 0);
    podshm_writer *writer;
    char key[512];
    size_t key_len;
    if (!say(c, podshm_writer_new(agent, word(c, 1), &writer), 0))
        return;
    if (!strcmp(what, "put")) {
        bytes(value, number(c, 3), number(c, 4));
        key_len = key_of(word(c, 2), key);
        say(c, podshm_writer_put(writer, key, key_len, value, number(c, 3)), 0);
    } else if (!strcmp(what, "remove")) {
        key_len = key_of(word(c, 2), key);
        say(c, podshm_writer_remove(writer, key, key_len), 0);
    } else if (!strcmp(what, "put-many")) {
        for (unsigned n = 0; n < number(c, 2) && !strcmp(c->answer, "ok"); n++) {
            bytes(value, number(c, 3), n);
            key_len = key_number(n, key);
            say(c, podshm_writer_put(writer, key, key_len, value, number(c, 3)), 0);
        }
    } else {
        for (int n = 2; n < c->count && !strcmp(c->answer, "ok"); n += 3) {
            bytes(value, number(c, n + 1), number(c, n + 2));
            say(c, podshm_writer_put_later(writer, word(c, n), strlen(word(c, n)), value, number(c, n + 1)), 0);
        }
        say(c, podshm_writer_publish(writer), 0);
    }
    podshm_writer_free(writer);
}

/* Waits for so many more records of a queue, which follow one another. */
static void expect(struct command *c)
{
    uint64_t want = number(c, 2), seed = number(c, 4), got = 0;
    size_t len = number(c, 3), rest = 0;
    for (int n = 0; n < 20000; n++) {
        for (size_t at = got = 0; at < kept_count; at++)
            got += !strcmp(kept[at].queue, word(c, 1));
        if (got >= want || closed)
            break;
        if (!agent_round())
            break;
    }
    if (got < want) {
        snprintf(c->answer, sizeof c->answer, "%llu records", (unsigned long long)got);
        return;
    }
    says(c, "ok");
    for (size_t at = 0; at < kept_count; at++) {
        if (!want || strcmp(kept[at].queue, word(c, 1))) {
            kept[rest++] = kept[at];
            continue;
        }
        if (kept[at].len != len || !are_bytes(kept[at].data, len, seed))
            snprintf(c->answer, sizeof c->answer, "wrong bytes: %zu of %zu, seed %llu", kept[at].len, len, (unsigned long long)seed);
        free(kept[at].data);
        seed++, want--;
    }
    kept_count = rest;
}

static void inherited(struct command *c)
{
    char state[MOST_ANSWER];
    size_t len = 0;
    podshm_result result = podshm_agent_inherited_state(agent, NULL, 0, &len);
    if (result == PODSHM_BUFFER_TOO_SMALL && len < sizeof state)
        result = podshm_agent_inherited_state(agent, state, sizeof state, &len);
    if (say(c, result, len))
        snprintf(c->answer, sizeof c->answer, "%.*s", len ? (int)len : 7, len ? state : "nothing");
}

static unsigned char state[1 << 17];

static void close_with(struct command *c)
{
    bytes(state, number(c, 1), number(c, 2));
    if (say(c, podshm_agent_close(agent, state, number(c, 1)), 0))
        serves = 0, closed = 1;
}

static void inherited_is(struct command *c)
{
    size_t len = 0, want = number(c, 1);
    if (say(c, podshm_agent_inherited_state(agent, state, sizeof state, &len), len) && (len != want || !are_bytes(state, want, number(c, 2))))
        snprintf(c->answer, sizeof c->answer, "wrong bytes: %zu of %zu", len, want);
}

/* The words from number `n` on. */
static void words(const struct command *c, int n, char *to)
{
    to[0] = 0;
    for (int at = n; at < c->count; at++)
        snprintf(to + strlen(to), MOST_ANSWER - strlen(to), "%s%s", at > n ? " " : "", c->words[at]);
}

static void await(struct command *c)
{
    for (int n = 0; n < 20000; n++) {
        uint64_t epoch = 0;
        if (!strcmp(word(c, 0), "await-closed") ? closed : say(c, podshm_agent_epoch(agent, &epoch), 0) && epoch > 0) {
            says(c, "ok");
            return;
        }
        agent_round();
    }
    says(c, "it did not happen");
}

static void as_child(struct command *c, const char *directory)
{
    agent_command(c, directory);
    podshm_agent_free(agent);
}

void agent_command(struct command *c, const char *directory)
{
    const char *what = word(c, 0);
    podshm_progress progress;
    if (!strcmp(what, "connect"))
        connect_agent(c, directory);
    else if (!strcmp(what, "put") || !strcmp(what, "remove") || !strcmp(what, "put-many") || !strcmp(what, "publish"))
        publish(c);
    else if (!strcmp(what, "poll"))
        say(c, poll_once(&progress), 0);
    else if (!strcmp(what, "ready"))
        say(c, podshm_agent_ready(agent), 0);
    else if (!strcmp(what, "serve"))
        serves = 1, says(c, "ok");
    else if (!strcmp(what, "pause"))
        serves = 0, says(c, "ok");
    else if (!strcmp(what, "expect"))
        expect(c);
    else if (!strcmp(what, "answer")) {
        char *plus = strchr(word(c, 1), '+');
        more = plus ? strtoul(plus + 1, NULL, 10) : 0;
        if (plus)
            *plus = 0;
        snprintf(how, sizeof how, "%s", word(c, 1)), says(c, "ok");
    } else if (!strcmp(what, "parts"))
        says(c, parts > 1 ? "several" : "none");
    else if (!strcmp(what, "hangs")) {
        for (int n = 0; n < 20000; n++)
            agent_round(); /* the handler answers, and never comes back */
        says(c, "it does not");
    } else if (!strcmp(what, "leave"))
        words(c, 1, behind), says(c, "ok");
    else if (!strcmp(what, "close")) {
        char state[MOST_ANSWER];
        words(c, 1, state);
        say(c, podshm_agent_close(agent, state, strlen(state)), 0);
        serves = 0, closed = 1;
    } else if (!strcmp(what, "epoch")) {
        uint64_t epoch;
        if (say(c, podshm_agent_epoch(agent, &epoch), 0))
            snprintf(c->answer, sizeof c->answer, "%llu", (unsigned long long)epoch);
    } else if (!strcmp(what, "close-with"))
        close_with(c);
    else if (!strcmp(what, "inherited"))
        inherited(c);
    else if (!strcmp(what, "inherited-is"))
        inherited_is(c);
    else if (!strncmp(what, "await-", 6))
        await(c);
    else if (!strcmp(what, "fork"))
        in_child(c, directory, as_child);
}
