/* A business program that asks the guard (guard.c) before it does something.
 *
 *   ask SOCKET-DIRECTORY ACTION RESOURCE [TIMES]
 *
 * Exits with 0 where it may, with 1 where it may not, with 2 where nobody can say. With TIMES it asks so often, and says how long that took. */
#define _POSIX_C_SOURCE 200809L
#include <podshm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int failed(const char *what)
{
    fprintf(stderr, "ask: %s: %s\n", what, podshm_last_message());
    return 2;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    podshm_client *client;
    podshm_caller *decide;
    char request[256], answer[16];
    size_t len = 0;
    int request_len, status;
    long times;
    double start;
    if (argc < 4) {
        fprintf(stderr, "usage: ask SOCKET-DIRECTORY ACTION RESOURCE [TIMES]\n");
        return 2;
    }
    request_len = snprintf(request, sizeof request, "%s %s", argv[2], argv[3]);
    if (request_len >= (int)sizeof request) {
        fprintf(stderr, "ask: an action and a resource of at most %zu bytes, please\n", sizeof request - 2);
        return 2;
    }
    times = argc > 4 ? strtol(argv[4], NULL, 10) : 1;
    if (podshm_client_new(argv[1], 5000000000u, &client) != PODSHM_OK)
        return failed("joining");
    if (podshm_caller_new(client, "decide", &decide) != PODSHM_OK)
        return failed("the guard's call");
    start = now();
    for (long n = 0; n < times; n++)
        if (podshm_caller_call(decide, request, (size_t)request_len, answer, sizeof answer, 1000000000u, &len) != PODSHM_OK)
            return failed("asking");
    if (argc > 4)
        printf("%.0f ns each\n", (now() - start) / (double)times);
    printf("%.*s\n", (int)len, answer);
    status = !(len == 5 && !memcmp(answer, "allow", 5));
    podshm_caller_free(decide);
    podshm_client_free(client);
    return status;
}
