/* Every function of the C library that takes arguments, and what each takes: for tests that call all of them. */
#ifndef PODSHM_TEST_FUNCTIONS_H
#define PODSHM_TEST_FUNCTIONS_H

#include "pair.h"

enum kind { CLIENT, TABLE, KEY, SNAPSHOT, VALUE, QUEUE, BATCH, CALLER, PENDING, BUILDER, AGENT, WRITER, DEFERRED, ANSWER, WAKER, KINDS };
static void *handles[KINDS];
static uint64_t aligned[1024];
static unsigned char *const room = (unsigned char *)aligned;
#define ROOM sizeof aligned

/* Any function, by words. It is called through this type where the calling convention allows: integers and pointers in registers. */
typedef int32_t (*any)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);

/* Arguments: a letter each. Handles are capitals, small ones:
 *   d l   bytes and their length      b s   room and its size     o   place for a result      p   the same, may be null
 *   t     name of a service           w     path                  y   place for a byte        q   the same, may be null
 *   f     a function                  z     one or null, or its pointer                       h   a table of functions
 *   r     runs of bytes               m     a length or offset    i   a time                  n   another number */
struct function {
    const char *name;
    any call;
    const char *arguments;
};
#define F(name, arguments) {#name, (any)(void (*)(void))name, arguments}

static const char LETTERS[] = "CTKSVQBAPUGWDRX"; /* by kind */

static const struct function FUNCTIONS[] = {
    F(podshm_abi, "o"), F(podshm_client_new, "wio"), F(podshm_client_free, "C"), F(podshm_client_id, "Co"),
    F(podshm_client_domain, "Co"), F(podshm_client_member, "Co"), F(podshm_client_agent_epoch, "Co"),
    F(podshm_client_agent_present, "Cy"), F(podshm_table_new, "Cto"), F(podshm_table_free, "T"),
    F(podshm_table_get, "Tdlbsp"), F(podshm_table_keys, "To"), F(podshm_table_generation, "To"),
    F(podshm_table_version, "To"), F(podshm_table_age, "To"), F(podshm_key_new, "Tdlo"), F(podshm_key_free, "K"),
    F(podshm_key_get, "Kbsp"), F(podshm_snapshot_new, "To"), F(podshm_snapshot_free, "S"),
    F(podshm_snapshot_get, "Sdlbsp"), F(podshm_snapshot_check, "Sp"), F(podshm_value_new, "Tdlo"),
    F(podshm_value_free, "V"), F(podshm_value_len, "Vo"), F(podshm_value_read, "Vmbs"), F(podshm_queue_new, "Cto"),
    F(podshm_queue_free, "Q"), F(podshm_queue_try_push, "Qdlp"), F(podshm_queue_push, "Qdlip"),
    F(podshm_queue_try_push_with, "Qmfzp"), F(podshm_queue_try_push_all, "Qrlp"), F(podshm_queue_push_or_drop, "Qdlq"), F(podshm_queue_dropped, "Qo"),
    F(podshm_batch_new, "Qo"), F(podshm_batch_try_push, "Bdlp"), F(podshm_batch_publish, "B"),
    F(podshm_batch_free, "B"), F(podshm_caller_new, "Cto"), F(podshm_caller_spinning, "Aio"),
    F(podshm_caller_waiting_for_agent, "Ao"),
    F(podshm_caller_free, "A"), F(podshm_caller_call, "Adlbsip"), F(podshm_caller_call_with, "Amfzifzp"),
    F(podshm_caller_start, "Adlio"), F(podshm_caller_event_fd, "Ao"), F(podshm_pending_free, "P"),
    F(podshm_pending_try_take, "Pbsp"), F(podshm_pending_wait, "Pbsp"), F(podshm_pending_arm, "P"),
    F(podshm_builder_new, "o"), F(podshm_builder_free, "U"), F(podshm_builder_table, "Utnn"),
    F(podshm_builder_queue, "Utnn"), F(podshm_builder_call, "Utnn"), F(podshm_builder_idempotent_call, "Utnn"),
    F(podshm_agent_new, "Uwio"), F(podshm_agent_free, "G"), F(podshm_agent_ready, "G"), F(podshm_agent_poll, "Ghop"),
    F(podshm_agent_wait, "Gi"), F(podshm_agent_run, "Ghzz"), F(podshm_agent_event_fd, "Go"), F(podshm_agent_park, "Gy"),
    F(podshm_agent_set_spin, "Gi"), F(podshm_agent_epoch, "Go"), F(podshm_agent_clients, "Go"),
    F(podshm_agent_inherited_state, "Gbso"), F(podshm_agent_close, "Gdl"), F(podshm_writer_new, "Gto"),
    F(podshm_writer_free, "W"), F(podshm_writer_put, "Wdldl"), F(podshm_writer_remove, "Wdl"),
    F(podshm_writer_put_later, "Wdldl"), F(podshm_writer_remove_later, "Wdl"), F(podshm_writer_publish, "W"),
    F(podshm_writer_touch, "W"), F(podshm_writer_keys, "Wo"), F(podshm_answer_reply, "Rdl"),
    F(podshm_answer_reply_with, "Rnfzz"), F(podshm_answer_fail, "Rn"), F(podshm_answer_defer, "Ro"),
    F(podshm_deferred_reply, "Ddl"), F(podshm_deferred_fail, "Dn"), F(podshm_deferred_free, "D"),
    F(podshm_batch_try_push_with, "Bmfzp"), F(podshm_waker_new, "Go"), F(podshm_waker_wake, "X"), F(podshm_waker_free, "X"),
};
#define COUNT (sizeof FUNCTIONS / sizeof *FUNCTIONS)

static const podshm_bytes RUNS[8] = {{"x", 1}};

static inline int kind_of(char letter)
{
    const char *at = strchr(LETTERS, letter);
    return at ? (int)(at - LETTERS) : -1;
}

static inline bool is_free(const struct function *f)
{
    return strlen(f->name) > 5 && !strcmp(f->name + strlen(f->name) - 5, "_free");
}

static inline void fills(void *user, size_t offset, void *part, size_t len)
{
    (void)user, (void)offset;
    memset(part, 7, len);
}

static const podshm_handler *good_handler;

static inline uintptr_t good(char letter)
{
    int kind = kind_of(letter);
    if (kind >= 0)
        return (uintptr_t)handles[kind];
    switch (letter) {
    case 'd': case 'b': case 'o': case 'p': case 'y': case 'q': return (uintptr_t)room;
    case 'r': return (uintptr_t)RUNS;
    case 's': return ROOM;
    case 't': case 'w': return (uintptr_t)"routes";
    case 'l': case 'n': case 'm': case 'i': return 8;
    case 'f': return (uintptr_t)fills;
    case 'z': return 0;
    default: return (uintptr_t)good_handler;
    }
}

static inline int32_t apply(const struct function *f, const uintptr_t a[8])
{
    return f->call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
}

static inline int32_t call_well(const struct function *f)
{
    uintptr_t a[8] = {0};
    for (size_t at = 0; f->arguments[at]; at++)
        a[at] = good(f->arguments[at]);
    return apply(f, a);
}

#endif
