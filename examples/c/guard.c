/* A small security agent: answers "MEMBER's ACTION on RESOURCE?" over the call `decide`, and publishes its rules' number in the table `guard`.
 *
 *   guard SOCKET-DIRECTORY RULES
 *
 * RULES has a rule on each line, the first that fits counts; * fits everything, what fits none is denied:
 *
 *   allow shop/cart   read  orders
 *   deny  *           write *
 *
 * A request is "ACTION RESOURCE", an answer "allow" or "deny". Who asks is not in the request: the broker knows (request->member), and no
 * pod can claim to be another. The rules are read again at SIGHUP; rules that make no sense are named, and the ones before stand. Ends in order at
 * SIGTERM, or when a successor is ready. */
#define _POSIX_C_SOURCE 200809L
#include <podshm.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_RULES 1000
#define WORD 64

struct rule {
    bool allows;
    char member[WORD], action[WORD], resource[WORD];
};

struct rules {
    struct rule rule[MOST_RULES];
    size_t count;
};

static struct rules rules;
static volatile sig_atomic_t stopped, reread;

static void on_signal(int signal)
{
    if (signal == SIGHUP)
        reread = 1;
    else
        stopped = 1;
}

static bool stop(void *user)
{
    (void)user;
    return stopped || reread;
}

/* Reads all of a file's rules, or none: whether it could. */
static bool read_rules(const char *path, struct rules *into)
{
    static struct rules next;
    char line[512], verdict[WORD], extra[2];
    int number = 0;
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        return false;
    }
    next.count = 0;
    while (fgets(line, sizeof line, file)) {
        struct rule *rule = &next.rule[next.count];
        int words;
        number++;
        line[strcspn(line, "#\n")] = 0;
        words = sscanf(line, "%63s %63s %63s %63s %1s", verdict, rule->member, rule->action, rule->resource, extra);
        if (words <= 0)
            continue;
        rule->allows = !strcmp(verdict, "allow");
        if (words != 4 || (!rule->allows && strcmp(verdict, "deny")) || next.count + 1 == MOST_RULES) {
            fprintf(stderr, "guard: %s:%d: expected 'allow|deny MEMBER ACTION RESOURCE'; the rules before stand\n", path, number);
            fclose(file);
            return false;
        }
        next.count++;
    }
    fclose(file);
    *into = next;
    return true;
}

static bool fits(const char *pattern, const char *text, size_t len)
{
    return !strcmp(pattern, "*") || (strlen(pattern) == len && !memcmp(pattern, text, len));
}

static void decide(void *user, const podshm_request *request, podshm_answer *answer)
{
    const char *action = request->data, *resource;
    size_t action_len, resource_len;
    (void)user;
    resource = request->len ? memchr(action, ' ', request->len) : NULL;
    if (!resource) {
        podshm_answer_fail(answer, PODSHM_FIRST_STATUS); /* no request of ours */
        return;
    }
    action_len = (size_t)(resource - action);
    resource_len = request->len - action_len - 1;
    resource++;
    for (size_t n = 0; n < rules.count; n++) {
        const struct rule *rule = &rules.rule[n];
        if (fits(rule->member, request->member.data, request->member.len) && fits(rule->action, action, action_len) &&
            fits(rule->resource, resource, resource_len)) {
            podshm_answer_reply(answer, rule->allows ? "allow" : "deny", rule->allows ? 5 : 4);
            return;
        }
    }
    podshm_answer_reply(answer, "deny", 4);
}

static int failed(const char *what)
{
    fprintf(stderr, "guard: %s: %s\n", what, podshm_last_message());
    return 1;
}

static int publish(podshm_agent *agent)
{
    char text[32];
    podshm_writer *writer;
    int len = snprintf(text, sizeof text, "%zu", rules.count);
    podshm_result result = podshm_writer_new(agent, "guard", &writer);
    if (result == PODSHM_OK)
        result = podshm_writer_put(writer, "rules", 5, text, (size_t)len);
    podshm_writer_free(writer);
    return result == PODSHM_OK ? 0 : failed("publishing");
}

/* Serves until it is stopped or a successor is ready. */
static int serve(podshm_agent *agent, const char *path)
{
    podshm_handler handler = {.size = sizeof handler, .call = decide};
    podshm_progress progress = PODSHM_IDLE;
    while (!stopped && progress != PODSHM_CLOSE_ASKED) {
        if (reread) {
            reread = 0;
            if (read_rules(path, &rules) && publish(agent))
                return 1;
            fprintf(stderr, "guard: %zu rules\n", rules.count);
        }
        if (podshm_agent_poll(agent, &handler, &progress, NULL) != PODSHM_OK)
            return failed("serving");
        if (progress == PODSHM_IDLE && !stop(NULL) && podshm_agent_wait(agent, 20000000) != PODSHM_OK)
            return failed("waiting");
    }
    return podshm_agent_close(agent, NULL, 0) == PODSHM_OK ? 0 : failed("closing");
}

int main(int argc, char **argv)
{
    struct sigaction action;
    podshm_builder *builder;
    podshm_agent *agent = NULL;
    int status = 1;
    if (argc != 3) {
        fprintf(stderr, "usage: guard SOCKET-DIRECTORY RULES\n");
        return 2;
    }
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGHUP, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    if (!read_rules(argv[2], &rules))
        return 1;
    if (podshm_builder_new(&builder) != PODSHM_OK || podshm_builder_table(builder, "guard", 16, 65536) != PODSHM_OK ||
        podshm_builder_idempotent_call(builder, "decide", PODSHM_DEFAULT_CALL_RING, 1024) != PODSHM_OK ||
        podshm_agent_new(builder, argv[1], 5000000000u, &agent) != PODSHM_OK)
        failed("connecting");
    else if (!publish(agent))
        status = podshm_agent_ready(agent) == PODSHM_OK ? serve(agent, argv[2]) : failed("taking over");
    podshm_agent_free(agent);
    podshm_builder_free(builder);
    return status;
}
