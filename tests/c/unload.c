/* Loads the library by hand, as a plug-in has it, and closes it while a client of its lives.
 *
 *   unload LIBRARY AGENT CLIENT     the library, and the socket directories of a pod that serves and of one that joins
 */
#include "podshm.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DIE(...) (fprintf(stderr, "line %d: ", __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(1))
#define LOAD(name) memcpy(&name, &(void *){dlsym(library, "podshm_" #name)}, sizeof(void *))

static podshm_result (*builder_new)(podshm_builder **), (*builder_free)(podshm_builder *), (*agent_ready)(podshm_agent *);
static podshm_result (*builder_queue)(podshm_builder *, const char *, uint32_t, uint32_t);
static podshm_result (*agent_new)(const podshm_builder *, const char *, uint64_t, podshm_agent **);
static podshm_result (*agent_run)(podshm_agent *, const podshm_handler *, podshm_stop, void *);
static podshm_result (*agent_free)(podshm_agent *), (*client_new)(const char *, uint64_t, podshm_client **);
static podshm_result (*client_id)(const podshm_client *, uint64_t *), (*client_free)(podshm_client *);
static const char *(*last_message)(void);
static podshm_agent *agent;
static bool stops;

#define OK(call) do { if ((call) != PODSHM_OK) DIE("%s: %s", #call, last_message()); } while (0)

static bool is_to_stop(void *user)
{
    (void)user;
    return __atomic_load_n(&stops, __ATOMIC_ACQUIRE);
}

static void *serves(void *user)
{
    static const podshm_handler handler = {sizeof handler, NULL, NULL, NULL, NULL};
    OK(agent_run(agent, &handler, is_to_stop, user));
    OK(agent_free(agent));
    return NULL;
}

static char **arguments;
static podshm_client *client;

/* In a thread of its own, as a plug-in's work is: the library stays of itself where a thread has used it that lives. */
static void *joins(void *user)
{
    podshm_builder *builder;
    pthread_t thread;
    uint64_t id;
    (void)user;
    OK(builder_new(&builder));
    OK(builder_queue(builder, "reports", PODSHM_DEFAULT_RING, 1024));
    OK(agent_new(builder, arguments[2], 60000000000u, &agent));
    OK(builder_free(builder));
    OK(agent_ready(agent));
    if (pthread_create(&thread, NULL, serves, NULL))
        DIE("no thread");
    OK(client_new(arguments[3], 60000000000u, &client));
    OK(client_id(client, &id));
    __atomic_store_n(&stops, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    return NULL;
}

static void *leaves(void *user)
{
    (void)user;
    OK(client_free(client));
    return NULL;
}

static void in_a_thread(void *(*work)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) || pthread_join(thread, NULL))
        DIE("no thread");
}

int main(int argc, char **argv)
{
    const struct timespec some = {0, 200000000};
    void *library;
    if (argc != 4)
        DIE("usage: unload LIBRARY AGENT CLIENT");
    arguments = argv;
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        DIE("%s", dlerror());
    LOAD(builder_queue), LOAD(builder_new), LOAD(builder_free), LOAD(agent_new), LOAD(agent_ready), LOAD(agent_run);
    LOAD(agent_free), LOAD(client_new), LOAD(client_id), LOAD(client_free), LOAD(last_message);
    in_a_thread(joins);
    if (dlclose(library))
        DIE("%s", dlerror());
    /* The client's thread is told of agents meanwhile. */
    nanosleep(&some, NULL);
    if (!dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD))
        DIE("the library has gone, with a client in it");
    in_a_thread(leaves);
    nanosleep(&some, NULL);
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library || dlclose(library) || dlclose(library))
        DIE("%s", dlerror());
    if (!dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD))
        DIE("the library has gone, where a thread of its may be ending");
    puts("done");
    return 0;
}
