/* A participant of the conformance suite (tests/conformance/cases.txt) over the C ABI.
 *
 *   conform ROLE     agent and successor serve, others join; commands come line by line over control.sock in the pod's socket
 *                    directory, and each is answered by a line
 */
#define _GNU_SOURCE
#include "conform.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

void die(const char *what, const char *detail)
{
    fprintf(stderr, "conform: %s: %s\n", what, detail);
    _exit(2);
}

const char *word(const struct command *command, int n)
{
    if (n >= command->count)
        die("a command is too short", command->words[0]);
    return command->words[n];
}

uint64_t number(const struct command *command, int n)
{
    char *end;
    uint64_t value = strtoull(word(command, n), &end, 10);
    if (*end)
        die("expected a number", command->words[n]);
    return value;
}

uint64_t nanos(const struct command *command, int n)
{
    return number(command, n) * 1000000;
}

void says(struct command *command, const char *answer)
{
    snprintf(command->answer, sizeof command->answer, "%s", answer);
}

static char reason[1024];

void reasons(const char *message)
{
    snprintf(reason, sizeof reason, "%s", message);
}

/* Whether the last error gave these words for its reason: several reasons have one kind. */
static void because(struct command *command, const char *words)
{
    if (strstr(reason, words))
        says(command, "ok");
    else
        snprintf(command->answer, MOST_ANSWER, "because %.200s", reason);
}

int say(struct command *command, podshm_result result, size_t needed)
{
    char *answer = command->answer;
    const char *name = podshm_result_name(result);
    switch (result) {
    case PODSHM_OK:
        says(command, "ok");
        return 1;
    case PODSHM_NOT_FOUND:
        says(command, "not found");
        return 0;
    case PODSHM_NOT_YET:
        says(command, "not yet");
        return 0;
    default:
        fprintf(stderr, "conform: %s: %s: %s\n", command->words[0], name, podshm_last_message());
        reasons(podshm_last_message());
        name += strlen("PODSHM_");
        if (result == PODSHM_BUFFER_TOO_SMALL && needed)
            snprintf(answer, MOST_ANSWER, "error %s %zu", name, needed);
        else if (result == PODSHM_FAILED)
            snprintf(answer, MOST_ANSWER, "error %s %u", name, (unsigned)podshm_last_status());
        else
            snprintf(answer, MOST_ANSWER, "error %s", name);
        return 0;
    }
}

unsigned char byte(size_t at, uint64_t seed)
{
    return (unsigned char)(seed + at * 7 + (at >> 8));
}

void bytes(unsigned char *to, size_t len, uint64_t seed)
{
    for (size_t at = 0; at < len; at++)
        to[at] = byte(at, seed);
}

int are_bytes(const unsigned char *found, size_t len, uint64_t seed)
{
    for (size_t at = 0; at < len; at++)
        if (found[at] != byte(at, seed))
            return 0;
    return 1;
}

size_t key_of(const char *written, char *to)
{
    const char *star = strchr(written, '*');
    size_t len;
    if (!strcmp(written, "-"))
        return 0;
    if (!star)
        return (size_t)sprintf(to, "%.500s", written);
    len = strtoul(star + 1, NULL, 10);
    memset(to, written[0], len);
    return len;
}

size_t key_number(unsigned n, char *to)
{
    return (size_t)sprintf(to, "key-%u", n);
}

void in_child(struct command *command, const char *directory, void (*run)(struct command *, const char *))
{
    int pipes[2], status;
    pid_t child;
    ssize_t got;
    if (pipe(pipes))
        die("pipe", strerror(errno));
    fflush(NULL);
    child = fork();
    if (!child) {
        alarm(60);
        memmove(command->words, command->words + 1, (size_t)--command->count * sizeof command->words[0]);
        run(command, directory);
        _exit(write(pipes[1], command->answer, strlen(command->answer) + 1) < 0);
    }
    close(pipes[1]);
    got = read(pipes[0], command->answer, sizeof command->answer);
    close(pipes[0]);
    if (waitpid(child, &status, 0) != child || status || got <= 0)
        says(command, "the child ended badly");
}

#define MOST_CHILDREN 16

void in_children(struct command *command, const char *directory, void (*run)(struct command *, const char *))
{
    int pipes[MOST_CHILDREN][2], status;
    pid_t children[MOST_CHILDREN];
    size_t count = number(command, 1), bad = 0;
    char first[MOST_ANSWER] = "", answer[MOST_ANSWER];
    if (count > MOST_CHILDREN)
        die("prefork", "too many children");
    fflush(NULL);
    for (size_t n = 0; n < count; n++) {
        if (pipe(pipes[n]))
            die("pipe", strerror(errno));
        children[n] = fork();
        if (!children[n]) {
            alarm(60);
            command->count -= 2;
            memmove(command->words, command->words + 2, (size_t)command->count * sizeof command->words[0]);
            run(command, directory);
            _exit(write(pipes[n][1], command->answer, strlen(command->answer) + 1) < 0);
        }
        close(pipes[n][1]);
    }
    for (size_t n = 0; n < count; n++) {
        ssize_t got = read(pipes[n][0], answer, sizeof answer);
        close(pipes[n][0]);
        if (waitpid(children[n], &status, 0) != children[n] || status || got <= 0) {
            bad++;
            continue;
        }
        if (n && strcmp(first, answer))
            bad++;
        memcpy(first, answer, sizeof first);
    }
    says(command, bad ? "the children do not agree" : first);
}

static int control_fd;

void hang(void)
{
    dprintf(control_fd, "ok\n");
    for (;;)
        pause();
}

/* For the test that sanitizers and valgrind are at work. */
static void planted(void)
{
#if defined(PLANTED_LEAK) || defined(PLANTED_OVERFLOW)
    volatile size_t size = 64;
    volatile char *bytes = malloc(size);
#ifdef PLANTED_OVERFLOW
    bytes[size] = 1;
    free((void *)bytes);
#else
    bytes[0] = 1;
#endif
#endif
}

static int control(const char *directory)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(at.sun_path, sizeof at.sun_path, "%s/control.sock", directory);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at))
        die("the test does not listen", strerror(errno));
    return fd;
}

int main(int argc, char **argv)
{
    const char *directory = getenv("PODSHM_SOCKET_DIR");
    int serves, fd;
    FILE *in;
    char line[4096];
    if (argc != 2 || !directory)
        die("usage", "conform ROLE, with PODSHM_SOCKET_DIR");
    planted();
    serves = !strcmp(argv[1], "agent") || !strcmp(argv[1], "successor");
    control_fd = fd = control(directory);
    in = fdopen(dup(fd), "r");
    if (!in)
        die("fdopen", strerror(errno));
    setvbuf(in, NULL, _IONBF, 0); /* so that poll knows of every line */
    for (;;) {
        struct pollfd waits = {.fd = fd, .events = POLLIN};
        struct command command = {.count = 0};
        char *rest = line;
        /* Serves between two commands. */
        while (serves && agent_round())
            if (poll(&waits, 1, 0) > 0)
                break;
        if (!fgets(line, sizeof line, in))
            return 0;
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "because ", 8)) {
            because(&command, line + 8);
            dprintf(fd, "%s\n", command.answer);
            continue;
        }
        while (command.count < MOST_WORDS && (command.words[command.count] = strsep(&rest, " ")))
            command.count++;
        says(&command, "no such command");
        (serves ? agent_command : client_command)(&command, directory);
        dprintf(fd, "%s\n", command.answer);
    }
}
