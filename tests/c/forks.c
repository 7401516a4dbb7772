/* A C program that joins, forks in every way there is, and looks at what parent and child have after it.
 *
 *   forks quiet DIRECTORY     one thread, every way to fork, handles in use; then waits for a line and uses them again
 *   forks busy DIRECTORY      four threads push, look up and call while the main thread forks
 *   forks orphan HOW DIRECTORY    a child (made by fork, twice, clone) lives on while the test kills the parent
 *   forks inspect             (started by exec) checks that nothing of the parent's came over
 *
 * Says what it does on stdout, line by line; says what is wrong on stderr and exits with 1.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS 60
#define DIE(...) (fprintf(stderr, "%s (pid %d): ", doing, getpid()), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(1))
#define CHECK(good, ...) do { if (!(good)) DIE(__VA_ARGS__); } while (0)

extern char **environ;
static const char *doing = "start";
static const char *self, *directory;

/* --- what is inherited ----------------------------------------------------------------------------------------------- */

/* Lines of /proc/self/maps that have `word`. */
static int maps_with(const char *word)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps, "no /proc/self/maps");
    while (fgets(line, sizeof line, maps))
        count += strstr(line, word) != NULL;
    fclose(maps);
    return count;
}

/* Descriptors that are sockets or podshm's memory. */
static int descriptors(void)
{
    char path[64], target[256];
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir, "no /proc/self/fd");
    for (struct dirent *entry; (entry = readdir(dir));) {
        snprintf(path, sizeof path, "/proc/self/fd/%.20s", entry->d_name);
        ssize_t len = readlink(path, target, sizeof target - 1);
        if (len <= 0)
            continue;
        target[len] = 0;
        count += !strncmp(target, "socket:", 7) || strstr(target, "memfd:podshm") != NULL;
    }
    closedir(dir);
    return count;
}

/* A sum over this process's own region, by the mapping that only it has writable. */
static uint64_t region_sum(void)
{
    char line[512];
    unsigned long from, to;
    uint64_t sum = 0;
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps, "no /proc/self/maps");
    while (fgets(line, sizeof line, maps)) {
        if (!strstr(line, "memfd:podshm-client") || !strstr(line, " rw-s "))
            continue;
        CHECK(sscanf(line, "%lx-%lx", &from, &to) == 2, "a line of maps: %s", line);
        for (volatile uint64_t *word = (uint64_t *)from; word < (uint64_t *)to; word++)
            sum = sum * 0x9e3779b97f4a7c15u + *word;
        found++;
    }
    fclose(maps);
    CHECK(found == 1, "%d writable mappings of its region, expected 1", found);
    return sum;
}

/* --- what handles do ------------------------------------------------------------------------------------------------- */

/* Uses every handle; each must give `expected`. */
static void use_all(struct shim_held *held, int64_t expected)
{
    const char *name;
    uint32_t n = 0;
    for (;; n++) {
        int64_t got = shim_use(held, n, &name);
        if (!name)
            break;
        CHECK(got == expected, "%s gives %ld, expected %ld: %s", name, (long)got, (long)expected, got < 0 ? shim_last_message() : "");
    }
    CHECK(n == 37, "%u handles were used, expected 37", n);
}

static void all_services(struct shim_client *client, const char *record)
{
    CHECK(shim_push(client, "reports", record, strlen(record)) >= 0, "push: %s", shim_last_message());
    CHECK(shim_lookup(client, "key") > 0, "lookup: %s", shim_last_message());
    CHECK(shim_call(client, 7) == 7, "call: %s", shim_last_message());
}

static struct shim_client *join(void)
{
    struct shim_client *client;
    CHECK(shim_join(directory, &client) == 0, "join: %s", shim_last_message());
    return client;
}

/* What a child does: finds nothing, is refused, drops everything, and joins as a client of its own. */
static void as_child(struct shim_client *client, struct shim_held *held, int handlers_ran)
{
    uint64_t parent = shim_id(client);
    alarm(SECONDS);
    CHECK(maps_with("memfd:podshm") == 0, "the parent's memory is mapped here");
    if (handlers_ran)
        CHECK(descriptors() == 0, "%d of the parent's descriptors are open here", descriptors());
    use_all(held, SHIM_FORKED);
    CHECK(descriptors() == 0, "%d of the parent's descriptors are open after a handle was used", descriptors());
    CHECK(shim_call(client, 1) == SHIM_FORKED && shim_push(client, "audit", "x", 1) == SHIM_FORKED, "not refused");
    shim_drop(held);
    shim_leave(client);
    CHECK(maps_with("memfd:podshm") == 0, "something is mapped here");

    client = join();
    CHECK(shim_id(client) != parent, "the child is client %lu as its parent", (unsigned long)parent);
    CHECK(maps_with("memfd:podshm-client") == 1, "the child has no region of its own");
    CHECK(shim_hold(client, &held) == 0, "hold: %s", shim_last_message());
    use_all(held, 0);
    shim_drop(held);
    all_services(client, "child");
    shim_leave(client);
    CHECK(descriptors() == 0 && maps_with("memfd:podshm") == 0, "something is left after leaving");
}

static void reap(pid_t pid)
{
    int status;
    CHECK(pid > 0, "no child: %s", strerror(errno));
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %#x", status);
}

static pid_t raw_clone(void)
{
    return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

/* --- ways to fork ---------------------------------------------------------------------------------------------------- */

static void by_fork(struct shim_client *client, struct shim_held *held)
{
    pid_t pid = fork();
    if (!pid) {
        as_child(client, held, 1);
        _exit(0);
    }
    reap(pid);
}

/* Leaves by exit(3), with every destructor. */
static void by_fork_and_exit(struct shim_client *client, struct shim_held *held)
{
    pid_t pid = fork();
    if (!pid) {
        as_child(client, held, 1);
        exit(0);
    }
    reap(pid);
}

/* Never looks at what it has. */
static void by_fork_and_silence(struct shim_client *client, struct shim_held *held)
{
    (void)client, (void)held;
    pid_t pid = fork();
    if (!pid)
        exit(descriptors() || maps_with("memfd:podshm"));
    reap(pid);
}

/* Its handles are the grandparent's. */
static void by_fork_twice(struct shim_client *client, struct shim_held *held)
{
    pid_t pid = fork();
    if (!pid) {
        pid_t second = fork();
        if (!second) {
            as_child(client, held, 1);
            _exit(0);
        }
        reap(second);
        as_child(client, held, 1);
        /* The middle one has left its own clients behind; now its child finds nothing either. */
        by_fork_and_silence(NULL, NULL);
        _exit(0);
    }
    reap(pid);
}

/* No fork handler runs. */
static void by_clone(struct shim_client *client, struct shim_held *held)
{
    pid_t pid = raw_clone();
    if (!pid) {
        as_child(client, held, 0);
        _exit(0);
    }
    reap(pid);
}

static void by_underscore_fork(struct shim_client *client, struct shim_held *held)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    pid_t pid = _Fork();
    if (!pid) {
        as_child(client, held, 0);
        _exit(0);
    }
    reap(pid);
#else
    (void)client, (void)held;
#endif
}

static void by_vfork_and_exec(struct shim_client *client, struct shim_held *held)
{
    (void)client, (void)held;
    pid_t pid = vfork();
    if (!pid) {
        execl(self, self, "inspect", (char *)NULL);
        _exit(127);
    }
    reap(pid);
}

static void by_posix_spawn(struct shim_client *client, struct shim_held *held)
{
    (void)client, (void)held;
    pid_t pid;
    char *arguments[] = {(char *)self, "inspect", NULL};
    CHECK(posix_spawn(&pid, self, NULL, NULL, arguments, environ) == 0, "posix_spawn");
    reap(pid);
}

static const struct {
    const char *name;
    void (*fork)(struct shim_client *, struct shim_held *);
} WAYS[] = {
    {"fork", by_fork},
    {"fork and exit", by_fork_and_exit},
    {"fork and silence", by_fork_and_silence},
    {"fork twice", by_fork_twice},
    {"clone", by_clone},
    {"_Fork", by_underscore_fork},
    {"vfork and exec", by_vfork_and_exec},
    {"posix_spawn", by_posix_spawn},
    {"fork again", by_fork},
};

static void wait_for_line(void)
{
    char line[64];
    CHECK(fgets(line, sizeof line, stdin), "the test is gone");
}

/* The library's own thread still takes answers for a while after the last call. */
static uint64_t settled_sum(void)
{
    uint64_t sum = region_sum();
    for (int same = 0, looks = 0; same < 20; looks++) {
        CHECK(looks < 2000, "the region does not come to rest");
        usleep(5000);
        uint64_t now = region_sum();
        same = now == sum ? same + 1 : 0;
        sum = now;
    }
    return sum;
}

static void quiet(void)
{
    struct shim_client *client = join();
    struct shim_held *held;
    printf("client %lu\n", (unsigned long)shim_id(client));
    all_services(client, "parent");
    int64_t agent = shim_lookup(client, "key");
    CHECK(shim_hold(client, &held) == 0, "hold: %s", shim_last_message());
    int64_t first = shim_push(client, "reports", "parent", 6);
    int64_t second = shim_push(client, "reports", "parent", 6);
    int mine = descriptors();
    uint64_t before = settled_sum();
    for (size_t way = 0; way < sizeof WAYS / sizeof *WAYS; way++) {
        doing = WAYS[way].name;
        WAYS[way].fork(client, held);
        CHECK(region_sum() == before, "the parent's region has changed");
        CHECK(descriptors() == mine, "the parent has %d descriptors, before it had %d", descriptors(), mine);
        printf("did %s\n", doing);
    }
    doing = "after the forks";
    int64_t third = shim_push(client, "reports", "parent", 6);
    CHECK(first >= 0 && third - second == second - first, "positions %ld %ld %ld", (long)first, (long)second, (long)third);
    puts("forked");
    wait_for_line();
    /* Another agent serves by now: its coming came through the broker's socket, which no child has closed. */
    while (shim_lookup(client, "key") == agent)
        usleep(1000);
    by_fork(client, held); /* handles on tables of the old agent: the child drops their last copies */
    use_all(held, 0);
    all_services(client, "parent");
    shim_drop(held);
    shim_leave(client);
    CHECK(descriptors() == 0 && maps_with("memfd:podshm") == 0, "something is left after leaving");
    puts("left");
}

/* --- many threads ---------------------------------------------------------------------------------------------------- */

static atomic_int stop;

static void *work(void *client)
{
    uint32_t done = 0;
    while (!atomic_load(&stop)) {
        CHECK(shim_push(client, "reports", "thread", 6) >= 0, "push: %s", shim_last_message());
        CHECK(shim_lookup(client, "key") > 0, "lookup: %s", shim_last_message());
        CHECK(shim_call(client, done) == done, "call: %s", shim_last_message());
        done++;
    }
    return (void *)(uintptr_t)done;
}

static void busy(void)
{
    struct shim_client *client = join();
    struct shim_held *held;
    pthread_t threads[4];
    uintptr_t pushed = 0;
    doing = "busy";
    printf("client %lu\n", (unsigned long)shim_id(client));
    CHECK(shim_hold(client, &held) == 0, "hold: %s", shim_last_message());
    for (int t = 0; t < 4; t++)
        CHECK(pthread_create(&threads[t], NULL, work, client) == 0, "no thread");
    for (int n = 0; n < 40; n++) {
        /* The ring of "audit" is locked at every fork, that of "reports" at many. */
        pid_t pid = fork();
        if (!pid) {
            alarm(SECONDS);
            CHECK(shim_push(client, "reports", "x", 1) == SHIM_FORKED, "not refused");
            CHECK(shim_push(client, "audit", "x", 1) == SHIM_FORKED, "not refused");
            CHECK(shim_call(client, 1) == SHIM_FORKED && shim_lookup(client, "key") == SHIM_FORKED, "not refused");
            if (n % 4 == 0)
                as_child(client, held, 1);
            else if (n % 4 == 1)
                use_all(held, SHIM_FORKED), shim_drop(held), shim_leave(client);
            _exit(0);
        }
        reap(pid);
    }
    atomic_store(&stop, 1);
    for (int t = 0; t < 4; t++) {
        void *done;
        pthread_join(threads[t], &done);
        pushed += (uintptr_t)done;
    }
    use_all(held, 0);
    shim_drop(held);
    shim_leave(client);
    printf("pushed %lu\n", (unsigned long)pushed);
    puts("left");
}

/* --- a parent that dies ---------------------------------------------------------------------------------------------- */

static void child_lives_on(int rejoin)
{
    struct shim_client *client = NULL;
    setsid();
    if (rejoin) {
        client = join();
        all_services(client, "child");
        printf("joined %lu\n", (unsigned long)shim_id(client));
    }
    printf("child %d\n", getpid());
    wait_for_line(); /* the parent is dead, and known to be */
    if (client) {
        all_services(client, "child");
        shim_leave(client);
    }
    puts("child ends");
    exit(0);
}

static void orphan(const char *how)
{
    struct shim_client *client = join();
    struct shim_held *held;
    doing = how;
    printf("client %lu\n", (unsigned long)shim_id(client));
    all_services(client, "parent");
    CHECK(shim_hold(client, &held) == 0, "hold: %s", shim_last_message());
    if (!strcmp(how, "fork")) {
        if (!fork())
            child_lives_on(0);
    } else if (!strcmp(how, "twice")) {
        if (!fork()) {
            if (!fork())
                child_lives_on(1);
            _exit(0);
        }
    } else if (!strcmp(how, "clone")) {
        /* Keeps the sockets: no handler runs, and it never touches the library. */
        if (!raw_clone())
            child_lives_on(0);
    } else {
        DIE("no such way");
    }
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    self = argv[0];
    directory = argc > 2 ? argv[argc - 1] : NULL;
    const char *mode = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(5 * SECONDS);
    if (!strcmp(mode, "inspect")) {
        doing = "inspect";
        CHECK(descriptors() == 0, "%d descriptors came over exec", descriptors());
        CHECK(maps_with("memfd:podshm") == 0, "memory came over exec");
    } else if (!strcmp(mode, "quiet") && directory) {
        quiet();
    } else if (!strcmp(mode, "busy") && directory) {
        busy();
    } else if (!strcmp(mode, "orphan") && argc == 4) {
        orphan(argv[2]);
    } else {
        DIE("usage: forks quiet|busy|inspect|orphan HOW DIRECTORY");
    }
    return 0;
}
