/* The client's half of the conformance suite in C. */
#define _GNU_SOURCE
#include "conform.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static podshm_client *client;
static podshm_key *key;
static char key_name[600];
static podshm_pending *pending;
static size_t pending_len;
static uint64_t pending_seed;
static uint64_t spin = 20000;
static bool waits;
static unsigned char room[1 << 17], sent[1 << 17];

/* How long anything may take here. */
#define PATIENCE (20ull * 1000000000)

static void nap(void)
{
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

static void let_go(void)
{
    podshm_key_free(key);
    podshm_pending_free(pending);
    podshm_client_free(client);
    key = NULL, pending = NULL, client = NULL;
}

/* Whether what came is as it must be; says so if not. */
static void check(struct command *c, size_t found, size_t len, int right)
{
    if (found != len || !right)
        snprintf(c->answer, sizeof c->answer, "wrong bytes: %zu of %zu", found, len);
}

/* --- tables ---------------------------------------------------------------------------------------------------------- */

static void lookup(struct command *c)
{
    podshm_table *table;
    char name[512];
    size_t key_len = key_of(word(c, 2), name), len = 0, want = number(c, 3);
    uint64_t seed = number(c, 4);
    podshm_result result;
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    if (!strcmp(word(c, 0), "key")) {
        char wanted[600];
        snprintf(wanted, sizeof wanted, "%s %s", word(c, 1), word(c, 2));
        if (!key || strcmp(wanted, key_name)) {
            podshm_key_free(key);
            strcpy(key_name, wanted);
            if (!say(c, podshm_key_new(table, name, key_len, &key), 0))
                return;
        }
        result = podshm_key_get(key, room, sizeof room, &len);
    } else {
        result = podshm_table_get(table, name, key_len, room, sizeof room, &len);
    }
    if (say(c, result, len))
        check(c, len, want, are_bytes(room, want, seed));
    podshm_table_free(table);
}

/* A handle that is a parent's, in a child. */
static void look_at_key(struct command *c)
{
    say(c, podshm_key_get(key, room, sizeof room, NULL), 0);
}

static void lookup_into(struct command *c)
{
    podshm_table *table;
    podshm_result result;
    char name[512];
    size_t key_len = key_of(word(c, 2), name), len = 0;
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    result = podshm_table_get(table, name, key_len, room, number(c, 3), &len);
    say(c, result, len);
    podshm_table_free(table);
}

static void part_of_value(struct command *c)
{
    podshm_table *table;
    podshm_value *value = NULL;
    char name[512];
    size_t key_len = key_of(word(c, 2), name), whole = 0, offset = number(c, 5), len = number(c, 6);
    uint64_t seed = number(c, 4);
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    if (say(c, podshm_value_new(table, name, key_len, &value), 0) && say(c, podshm_value_len(value, &whole), 0) &&
        say(c, podshm_value_read(value, offset, room, len), 0)) {
        int right = whole == number(c, 3);
        for (size_t at = 0; at < len; at++)
            right &= room[at] == byte(offset + at, seed);
        check(c, len, len, right);
    }
    podshm_value_free(value);
    podshm_table_free(table);
}

static void snapshot(struct command *c)
{
    podshm_table *table;
    podshm_snapshot *snapshot = NULL;
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    if (say(c, podshm_snapshot_new(table, &snapshot), 0)) {
        int right = 1;
        for (int n = 2; right && n < c->count; n += 3) {
            size_t len = 0, want = number(c, n + 1);
            right = say(c, podshm_snapshot_get(snapshot, word(c, n), strlen(word(c, n)), room, sizeof room, &len), 0);
            if (right && (len != want || !are_bytes(room, want, number(c, n + 2)))) {
                right = 0;
                check(c, len, want, 0);
            }
        }
        if (right)
            say(c, podshm_snapshot_check(snapshot, NULL), 0);
    }
    podshm_snapshot_free(snapshot);
    podshm_table_free(table);
}

static void many(struct command *c)
{
    podshm_table *table;
    char name[512];
    size_t want = number(c, 3);
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    for (unsigned n = 0; n < number(c, 2) && !strcmp(c->answer, "ok"); n++) {
        size_t len = 0, key_len = key_number(n, name);
        if (say(c, podshm_table_get(table, name, key_len, room, sizeof room, &len), 0))
            check(c, len, want, are_bytes(room, want, n));
    }
    podshm_table_free(table);
}

static void keys(struct command *c)
{
    podshm_table *table;
    uint64_t count;
    if (!say(c, podshm_table_new(client, word(c, 1), &table), 0))
        return;
    if (say(c, podshm_table_keys(table, &count), 0))
        snprintf(c->answer, sizeof c->answer, "%llu", (unsigned long long)count);
    podshm_table_free(table);
}

/* --- queues ---------------------------------------------------------------------------------------------------------- */

static void fill_sent(void *user, size_t offset, void *part, size_t len)
{
    (void)user;
    memcpy(part, sent + offset, len);
}

/* The records of push-all one behind the other, all at once. */
static void push_all(struct command *c, podshm_queue *queue)
{
    podshm_bytes records[32];
    size_t len = number(c, 3), count = number(c, 2), accepted = 0;
    for (size_t n = 0; n < count; n++) {
        bytes(sent + n * len, len, number(c, 4) + n);
        records[n].data = sent + n * len, records[n].len = len;
    }
    if (say(c, podshm_queue_try_push_all(queue, records, count, &accepted), 0) && accepted != count)
        says(c, "not all");
}

static void push(struct command *c)
{
    const char *how = word(c, 0);
    podshm_queue *queue;
    if (!say(c, podshm_queue_new(client, word(c, 1), &queue), 0))
        return;
    if (!strcmp(how, "push-all")) {
        push_all(c, queue);
    } else if (!strcmp(how, "push-many")) {
        size_t len = number(c, 3);
        for (uint64_t n = 0; n < number(c, 2) && !strcmp(c->answer, "ok"); n++) {
            bytes(sent, len, number(c, 4) + n);
            say(c, podshm_queue_push(queue, sent, len, PATIENCE, NULL), 0);
        }
    } else if (!strcmp(how, "fill")) {
        size_t len = number(c, 2);
        uint64_t n = 0;
        for (bool accepted = true; accepted; n += accepted) {
            bytes(sent, len, number(c, 3) + n);
            if (!say(c, podshm_queue_push_or_drop(queue, sent, len, &accepted), 0))
                break;
        }
        if (!strcmp(c->answer, "ok"))
            snprintf(c->answer, sizeof c->answer, "%llu", (unsigned long long)n);
    } else {
        size_t len = number(c, 2);
        bool accepted = true;
        bytes(sent, len, number(c, 3));
        if (!strcmp(how, "push"))
            say(c, podshm_queue_push(queue, sent, len, nanos(c, 4), NULL), 0);
        else if (!strcmp(how, "try-push"))
            say(c, podshm_queue_try_push(queue, sent, len, NULL), 0);
        else if (!strcmp(how, "push-in-place"))
            say(c, podshm_queue_try_push_with(queue, len, fill_sent, NULL, NULL), 0);
        else if (say(c, podshm_queue_push_or_drop(queue, sent, len, &accepted), 0) && !accepted)
            says(c, "dropped");
    }
    podshm_queue_free(queue);
}

static void batch(struct command *c)
{
    podshm_queue *queue;
    podshm_batch *batch = NULL;
    size_t len = number(c, 3);
    if (!say(c, podshm_queue_new(client, word(c, 1), &queue), 0))
        return;
    if (say(c, podshm_batch_new(queue, &batch), 0))
        for (uint64_t n = 0; n < number(c, 2) && !strcmp(c->answer, "ok"); n++) {
            bytes(sent, len, number(c, 4) + n);
            say(c, podshm_batch_try_push(batch, sent, len, NULL), 0);
        }
    podshm_queue_free(queue); /* the batch lives on, and publishes */
    podshm_batch_free(batch);
}

/* --- calls ----------------------------------------------------------------------------------------------------------- */

static podshm_caller *caller(struct command *c)
{
    podshm_caller *first, *spinning = NULL, *waiting = NULL;
    if (!say(c, podshm_caller_new(client, word(c, 1), &first), 0))
        return NULL;
    if (!say(c, podshm_caller_spinning(first, spin, &spinning), 0))
        spinning = NULL;
    podshm_caller_free(first);
    if (!waits || !spinning)
        return spinning;
    if (!say(c, podshm_caller_waiting_for_agent(spinning, &waiting), 0))
        waiting = NULL;
    podshm_caller_free(spinning);
    return waiting;
}

/* The agent answers with the request's bytes in reverse. */
static void check_answer(struct command *c, size_t found, size_t len, uint64_t seed)
{
    int right = found == len;
    for (size_t at = 0; right && at < len; at++)
        right = room[at] == byte(len - 1 - at, seed);
    check(c, found, len, right);
}

static void gather(void *user, size_t offset, size_t total, const void *part, size_t len)
{
    (void)user, (void)total;
    memcpy(room + offset, part, len);
}

static void call(struct command *c)
{
    const char *how = word(c, 0);
    podshm_caller *to = caller(c);
    size_t len = number(c, 2), found = 0, size = !strcmp(how, "call-into") ? number(c, 5) : sizeof room;
    uint64_t seed = number(c, 3);
    podshm_result result;
    if (!to)
        return;
    bytes(sent, len, seed);
    if (!strcmp(how, "call-in-place"))
        result = podshm_caller_call_with(to, len, fill_sent, NULL, nanos(c, 4), gather, NULL, &found);
    else
        result = podshm_caller_call(to, sent, len, room, size, nanos(c, 4), &found);
    if (say(c, result, found))
        check_answer(c, found, len, seed);
    podshm_caller_free(to);
}

static void start(struct command *c)
{
    podshm_caller *to = caller(c);
    if (!to)
        return;
    pending_len = number(c, 2), pending_seed = number(c, 3);
    bytes(sent, pending_len, pending_seed);
    podshm_pending_free(pending);
    say(c, podshm_caller_start(to, sent, pending_len, nanos(c, 4), &pending), 0);
    podshm_caller_free(to);
}

static void take(struct command *c)
{
    size_t found = 0;
    /* First into no room at all, which loses nothing. */
    podshm_result result = podshm_pending_wait(pending, NULL, 0, &found);
    if (result == PODSHM_BUFFER_TOO_SMALL)
        result = podshm_pending_wait(pending, room, found, &found);
    if (say(c, result, found))
        check_answer(c, found, pending_len, pending_seed);
}

static void look(struct command *c)
{
    size_t found = 0;
    if (say(c, podshm_pending_try_take(pending, room, sizeof room, &found), 0))
        check_answer(c, found, pending_len, pending_seed);
}

/* The response by an event loop. */
static void event(struct command *c)
{
    podshm_caller *to;
    struct pollfd waits = {.events = POLLIN};
    if (!say(c, podshm_caller_new(client, "decide", &to), 0) || !say(c, podshm_caller_event_fd(to, &waits.fd), 0))
        return;
    podshm_caller_free(to); /* the descriptor is the client's */
    for (;;) {
        uint64_t count;
        if (!say(c, podshm_pending_arm(pending), 0))
            return;
        look(c);
        if (strcmp(c->answer, "not yet"))
            return;
        if (poll(&waits, 1, 20000) <= 0) {
            says(c, "no event");
            return;
        }
        if (read(waits.fd, &count, sizeof count) < 0)
            says(c, "an event that is none");
    }
}

/* --- the rest -------------------------------------------------------------------------------------------------------- */

static void await(struct command *c)
{
    for (int n = 0; n < 20000; n++) {
        bool present = false;
        uint64_t epoch = 0;
        if (!strcmp(word(c, 0), "await-epoch") ? say(c, podshm_client_agent_epoch(client, &epoch), 0) && epoch >= number(c, 1)
                                               : say(c, podshm_client_agent_present(client, &present), 0) &&
                                                     present == !strcmp(word(c, 0), "await-present"))
            return;
        nap();
    }
    says(c, "it did not happen");
}

static void join(struct command *c, const char *directory, uint64_t timeout)
{
    let_go();
    say(c, podshm_client_new(directory, timeout, &client), 0);
}

/* In a child: with its parent's handles, or, with "again", as a client of its own. */
static void as_child(struct command *c, const char *directory)
{
    if (!strcmp(word(c, 0), "again")) {
        memmove(c->words, c->words + 1, (size_t)--c->count * sizeof c->words[0]);
        join(c, directory, PATIENCE);
        if (strcmp(c->answer, "ok"))
            return;
        client_command(c, directory);
        let_go();
    } else if (!strcmp(word(c, 0), "key")) {
        look_at_key(c);
    } else {
        client_command(c, directory);
    }
}

static void text(struct command *c, podshm_result (*what)(const podshm_client *, const char **))
{
    const char *text;
    if (say(c, what(client, &text), 0))
        says(c, text);
}

void client_command(struct command *c, const char *directory)
{
    const char *what = word(c, 0);
    bool present;
    if (!strcmp(what, "join"))
        join(c, directory, nanos(c, 1));
    else if (!strcmp(what, "leave"))
        let_go(), says(c, "ok");
    else if (!strcmp(what, "domain"))
        text(c, podshm_client_domain);
    else if (!strcmp(what, "member"))
        text(c, podshm_client_member);
    else if (!strcmp(what, "present"))
        say(c, podshm_client_agent_present(client, &present), 0) ? says(c, present ? "true" : "false") : (void)0;
    else if (!strcmp(what, "get") || !strcmp(what, "key"))
        lookup(c);
    else if (!strcmp(what, "get-into"))
        lookup_into(c);
    else if (!strcmp(what, "part"))
        part_of_value(c);
    else if (!strcmp(what, "snapshot"))
        snapshot(c);
    else if (!strcmp(what, "get-many"))
        many(c);
    else if (!strcmp(what, "keys"))
        keys(c);
    else if (!strncmp(what, "push", 4) || !strcmp(what, "try-push") || !strcmp(what, "fill"))
        push(c);
    else if (!strcmp(what, "batch"))
        batch(c);
    else if (!strncmp(what, "call", 4))
        call(c);
    else if (!strcmp(what, "start"))
        start(c);
    else if (!strcmp(what, "take"))
        take(c);
    else if (!strcmp(what, "look"))
        look(c);
    else if (!strcmp(what, "event"))
        event(c);
    else if (!strcmp(what, "cancel"))
        say(c, podshm_pending_free(pending), 0), pending = NULL;
    else if (!strcmp(what, "spin"))
        spin = !strcmp(word(c, 1), "never") ? PODSHM_SPIN_NEVER : PODSHM_SPIN_ALWAYS, says(c, "ok");
    else if (!strcmp(what, "wait-for-agent"))
        waits = true, says(c, "ok");
    else if (!strncmp(what, "await-", 6))
        await(c);
    else if (!strcmp(what, "fork"))
        in_child(c, directory, as_child);
    else if (!strcmp(what, "prefork"))
        in_children(c, directory, as_child);
}
