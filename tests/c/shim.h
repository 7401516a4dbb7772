/* The tests' C face of a podshm client; see tests/fork-shim/src/lib.rs. 0 or more is success, a negative number an error kind. */
#ifndef PODSHM_FORK_SHIM_H
#define PODSHM_FORK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#define SHIM_FORKED (-5)

struct shim_client;
struct shim_held;

const char *shim_last_message(void);
int64_t shim_join(const char *directory, struct shim_client **client);
void shim_leave(struct shim_client *client);
uint64_t shim_id(const struct shim_client *client);
int64_t shim_push(const struct shim_client *client, const char *queue, const void *record, size_t len);
int64_t shim_lookup(const struct shim_client *client, const char *key);
int64_t shim_call(const struct shim_client *client, uint32_t n);
int64_t shim_hold(const struct shim_client *client, struct shim_held **held);
int64_t shim_use(struct shim_held *held, uint32_t n, const char **name);
void shim_drop(struct shim_held *held);

#endif
