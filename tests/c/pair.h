/* What C tests of the library share: an agent that serves in a thread, and a client, in one process. */
#ifndef PODSHM_TEST_PAIR_H
#define PODSHM_TEST_PAIR_H

#include "podshm.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECONDS 60ull
#define PATIENCE (SECONDS * 1000000000)
#define DIE(...) (fprintf(stderr, "line %d: ", __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(1))
#define OK(call) IS(call, PODSHM_OK)
#define IS(call, expected) do { podshm_result r_ = (call); if (r_ != (expected)) DIE("%s is %s, expected %s: %s", #call, podshm_result_name(r_), #expected, podshm_last_message()); } while (0)

struct serving {
    const char *directory;
    const podshm_handler *handler;
    podshm_agent *agent;
    podshm_writer *writer;
    pthread_t thread;
    bool stops;
};

/* A table `routes` with "k", a queue `reports`, a call `decide`. */
static inline void connect_agent(struct serving *serving)
{
    podshm_builder *builder;
    OK(podshm_builder_new(&builder));
    OK(podshm_builder_table(builder, "routes", 100, 65536));
    OK(podshm_builder_queue(builder, "reports", PODSHM_DEFAULT_RING, 1024));
    OK(podshm_builder_call(builder, "decide", PODSHM_DEFAULT_CALL_RING, 65536));
    OK(podshm_agent_new(builder, serving->directory, PATIENCE, &serving->agent));
    OK(podshm_builder_free(builder));
    OK(podshm_writer_new(serving->agent, "routes", &serving->writer));
    OK(podshm_writer_put(serving->writer, "k", 1, "value", 5));
    OK(podshm_agent_ready(serving->agent));
}

static inline bool is_to_stop(void *user)
{
    return __atomic_load_n((bool *)user, __ATOMIC_ACQUIRE);
}

static inline void *runs(void *user)
{
    struct serving *serving = user;
    OK(podshm_agent_run(serving->agent, serving->handler, is_to_stop, &serving->stops));
    return NULL;
}

static inline void serve_in_a_thread(struct serving *serving)
{
    if (pthread_create(&serving->thread, NULL, runs, serving))
        DIE("no thread");
}

static inline void stop_serving(struct serving *serving)
{
    __atomic_store_n(&serving->stops, true, __ATOMIC_RELEASE);
    pthread_join(serving->thread, NULL);
    OK(podshm_writer_free(serving->writer));
    OK(podshm_agent_free(serving->agent));
}

#endif
