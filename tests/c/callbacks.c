/* What callbacks of a call may do with other calls of the same caller: nothing, but that loses no answer and keeps no memory.
 *
 *   callbacks AGENT CLIENT     the socket directories of a pod that serves and of one that joins
 */
#include "pair.h"

#include <malloc.h>

#define OUT 4
#define ANSWER 2000

static podshm_caller *caller;
static podshm_pending *pending[OUT];

/* Answers with so many times the request's first byte. */
static void answers(void *user, const podshm_request *request, podshm_answer *answer)
{
    unsigned char bytes[ANSWER];
    (void)user;
    memset(bytes, *(const unsigned char *)request->data, sizeof bytes);
    OK(podshm_answer_reply(answer, bytes, sizeof bytes));
}

static void start_all(void)
{
    for (int n = 0; n < OUT; n++)
        OK(podshm_caller_start(caller, &(char){(char)('a' + n)}, 1, PATIENCE, &pending[n]));
}

static void look(void)
{
    unsigned char answer[ANSWER];
    size_t len;
    IS(podshm_pending_try_take(pending[0], answer, sizeof answer, &len), PODSHM_REENTERED);
    IS(podshm_pending_wait(pending[1], answer, sizeof answer, &len), PODSHM_REENTERED);
    IS(podshm_pending_try_take(pending[1], answer, sizeof answer, &len), PODSHM_REENTERED);
    OK(podshm_pending_arm(pending[2]));
}

static void fills(void *user, size_t offset, void *part, size_t len)
{
    (void)offset;
    look();
    memset(part, *(char *)user, len);
}

static void looks(void *user, size_t offset, size_t total, const void *part, size_t len)
{
    (void)user, (void)offset, (void)total, (void)part, (void)len;
    look();
}

static void frees(void *user, size_t offset, size_t total, const void *part, size_t len)
{
    (void)user, (void)offset, (void)total, (void)part, (void)len;
    for (int n = 0; n < OUT; n++) {
        OK(podshm_pending_free(pending[n]));
        pending[n] = NULL;
    }
}

static void fills_only(void *user, size_t offset, void *part, size_t len)
{
    (void)user, (void)offset;
    memset(part, 'x', len);
}

int main(int argc, char **argv)
{
    const podshm_handler handler = {sizeof handler, NULL, NULL, answers, NULL};
    struct serving serving = {.handler = &handler};
    podshm_client *client;
    unsigned char answer[ANSWER];
    size_t len, before;
    if (argc != 3)
        DIE("usage: callbacks AGENT CLIENT");
    serving.directory = argv[1];
    connect_agent(&serving);
    serve_in_a_thread(&serving);
    OK(podshm_client_new(argv[2], PATIENCE, &client));
    OK(podshm_caller_new(client, "decide", &caller));

    /* A look from within loses nothing. */
    start_all();
    OK(podshm_caller_call_with(caller, 1, fills, "x", PATIENCE, looks, NULL, &len));
    for (int n = 0; n < OUT; n++) {
        OK(podshm_pending_wait(pending[n], answer, sizeof answer, &len));
        if (len != ANSWER || answer[0] != 'a' + n || answer[ANSWER - 1] != 'a' + n)
            DIE("another answer to %d", n);
        IS(podshm_pending_try_take(pending[n], answer, sizeof answer, &len), PODSHM_ENDED);
        OK(podshm_pending_free(pending[n]));
    }

    /* Nor does what is freed within keep its answer. */
    before = mallinfo2().uordblks;
    for (int round = 0; round < 500; round++) {
        start_all();
        OK(podshm_caller_call_with(caller, 1, fills_only, NULL, PATIENCE, frees, NULL, &len));
    }
    start_all();
    for (int n = 0; n < OUT; n++)
        OK(podshm_pending_free(pending[n]));
    if (mallinfo2().uordblks > before + 500 * ANSWER)
        DIE("%zu bytes are kept", mallinfo2().uordblks - before);

    OK(podshm_caller_free(caller));
    OK(podshm_client_free(client));
    stop_serving(&serving);
    puts("done");
    return 0;
}
