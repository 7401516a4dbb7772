/* Runs a script of System V calls in several processes, one call at a time, and prints what each came to.
 *
 *   caller UID:GID ... < script
 *
 * A worker for each UID:GID. A line is `WORKER OPERATION ARGUMENTS`; ids and attachments are named by the order in which
 * they came (ids over all workers, attachments within one). Pids are printed as roles, addresses as whether they are what
 * was asked for, times as whether they are set: the rest has to be the same wherever the script runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
#define WORKERS 8

static int ids[MOST], id_count;
static pid_t workers[WORKERS], child;
static int worker_count, child_pipe[2], done_pipe[2];
static struct { char *at; size_t size; int read_only; } maps[MOST];
static int map_count;
static char out[8192];

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    __builtin_va_list list;
    __builtin_va_start(list, format);
    size_t used = strlen(out);
    vsnprintf(out + used, sizeof out - used, format, list);
    __builtin_va_end(list);
}

static const char *role(pid_t pid)
{
    static char text[2][32];
    static int turn;
    char *to = text[turn ^= 1];
    for (int i = 0; i < worker_count; i++)
        if (workers[i] == pid)
            return snprintf(to, 32, "worker%d", i), to;
    return pid == 0 ? "nobody" : pid == child ? "child" : "other";
}

static void result(long value)
{
    if (value == -1)
        say("-1 errno %d", errno);
    else
        say("%ld", value);
}

static void print_stat(int value, struct shmid_ds *ds)
{
    result(value);
    if (value == -1)
        return;
    struct ipc_perm *p = &ds->shm_perm;
    say(" key %x owner %u:%u creator %u:%u mode %o seq %u size %zu a%d d%d c%d by %s last %s attached %lu",
        (unsigned)p->__key, p->uid, p->gid, p->cuid, p->cgid, (unsigned)p->mode, (unsigned)p->__seq, ds->shm_segsz,
        ds->shm_atime != 0, ds->shm_dtime != 0, ds->shm_ctime != 0, role(ds->shm_cpid), role(ds->shm_lpid),
        (unsigned long)ds->shm_nattch);
}

/* How much of an attachment is mapped in one piece from its start. */
static size_t mapped(char *at)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned long start, end;
    size_t size = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start == (unsigned long)at)
            size = end - start;
    if (f)
        fclose(f);
    return size;
}

static int nth_id(long n)
{
    /* From 10000 on: counted from the latest. */
    return n < 0 ? (int)n : !id_count ? 7 : ids[n < 10000 ? n % id_count : id_count - 1 - (n - 10000) % id_count];
}

/* What a forked child does when told, by the letter. */
static void be_child(int from)
{
    char order = 'r';
    if (write(done_pipe[1], &order, 1) != 1) /* it runs */
        _exit(1);
    while (read(from, &order, 1) == 1) {
        if (order == 'x')
            _exit(0);
        if (order == 'X')
            exit(0);
        if (order == 'd')
            for (int i = 0; i < map_count; i++)
                shmdt(maps[i].at);
        if (order == 'd' && write(done_pipe[1], &order, 1) != 1)
            _exit(1);
        if (order == 'e') {
            dup2(from, 0), dup2(done_pipe[1], 1);
            execlp("cat", "cat", (char *)0);
            _exit(127);
        }
    }
    _exit(0);
}


static void child_op(const char *what)
{
    if (!strcmp(what, "fork")) {
        if (child)
            return say("has one");
        if (pipe2(child_pipe, O_CLOEXEC) || pipe2(done_pipe, O_CLOEXEC))
            exit(3);
        fflush(stdout);
        child = fork();
        if (child == 0) {
            close(child_pipe[1]);
            be_child(child_pipe[0]);
        }
        close(child_pipe[0]), close(done_pipe[1]);
        char runs;
        return say(read(done_pipe[0], &runs, 1) == 1 ? "forked" : "died");
    }
    if (!child)
        return say("has none");
    if (!strcmp(what, "detach") || !strcmp(what, "exec")) {
        char order = what[0] == 'd' ? 'd' : 'e';
        /* A letter when it has detached; cat, once it is that, gives the second one back. */
        if (write(child_pipe[1], &order, 1) != 1 || (order == 'e' && write(child_pipe[1], "k", 1) != 1))
            return say("gone");
        return say(read(done_pipe[0], &order, 1) < 0 ? "never" : "done");
    }
    int killed = !strcmp(what, "kill");
    if (killed)
        kill(child, SIGKILL);
    else if (write(child_pipe[1], what[0] == 'q' ? "X" : "x", 1) != 1)
        say("gone ");
    close(child_pipe[1]), close(done_pipe[0]);
    waitpid(child, NULL, 0);
    child = 0;
    say("ended");
}

/* Whoever counts attachments looks now: in which order several went that nobody looked for, nobody can tell later. */
static void look(void)
{
    struct shm_info info;
    shmctl(0, SHM_INFO, (void *)&info);
}

static void perform(char *line)
{
    char op[32], what[32];
    long a = 0, b = 0, c = 0, d = 0, e = 0;
    int got = sscanf(line, "%31s %li %li %li %li %li", op, &a, &b, &c, &d, &e);
    errno = 0;
    if (got < 1)
        return;
    if (!strcmp(op, "get")) {
        result(shmget((key_t)a, (size_t)b, (int)c));
    } else if (!strcmp(op, "at")) { /* id, address, flags */
        char *at = shmat(nth_id(a), (void *)b, (int)c);
        if (at == (void *)-1)
            return result(-1);
        say(b ? "%s" : "attached", at == (char *)(b & ~0xfffl) ? "there" : "elsewhere");
        for (int i = 0; i < map_count; i++)
            if (maps[i].at == at) /* replaced */
                maps[i--] = maps[--map_count];
        int i = map_count < MOST ? map_count++ : 0;
        maps[i].at = at, maps[i].size = mapped(at), maps[i].read_only = (c & SHM_RDONLY) != 0;
    } else if (!strcmp(op, "dt")) {
        int i = map_count ? (int)(a % map_count) : 0;
        void *at = a < 0 || !map_count ? (void *)0x7000000 : maps[i].at;
        int value = shmdt((char *)at + b);
        result(value);
        if (value == 0)
            maps[i] = maps[--map_count];
    } else if (!strcmp(op, "unmap")) { /* attachment; all of it, without shmdt */
        if (!map_count)
            return say("nothing");
        int i = (int)(a % map_count);
        result(munmap(maps[i].at, maps[i].size));
        maps[i] = maps[--map_count]; /* what is mapped there next is up to the kernel */
        look();
    } else if (!strcmp(op, "stat")) { /* id, command, bad */
        struct shmid_ds ds;
        memset(&ds, 0, sizeof ds);
        print_stat(shmctl(nth_id(a), (int)b, c ? (void *)16 : &ds), &ds);
    } else if (!strcmp(op, "index")) { /* index, command */
        struct shmid_ds ds;
        memset(&ds, 0, sizeof ds);
        print_stat(shmctl((int)a, (int)b, &ds), &ds);
    } else if (!strcmp(op, "set")) { /* id, uid, gid, mode */
        struct shmid_ds ds;
        memset(&ds, 0, sizeof ds);
        ds.shm_perm.uid = (uid_t)b, ds.shm_perm.gid = (gid_t)c, ds.shm_perm.mode = (unsigned short)d;
        result(shmctl(nth_id(a), IPC_SET, e ? (void *)16 : &ds));
    } else if (!strcmp(op, "ctl")) { /* id, command */
        result(shmctl(nth_id(a), (int)b, NULL));
    } else if (!strcmp(op, "info")) {
        struct shminfo info;
        memset(&info, 0, sizeof info);
        result(shmctl(0, IPC_INFO, (void *)&info));
        say(" max %lu min %lu mni %lu seg %lu all %lu", info.shmmax, info.shmmin, info.shmmni, info.shmseg, info.shmall);
    } else if (!strcmp(op, "usage")) {
        struct shm_info info;
        memset(&info, 0, sizeof info);
        result(shmctl(0, SHM_INFO, (void *)&info));
        say(" ids %d pages %lu", info.used_ids, info.shm_tot);
    } else if (!strcmp(op, "poke") || !strcmp(op, "peek")) { /* attachment, offset, value */
        if (!map_count)
            return say("nothing");
        int i = (int)(a % map_count);
        char *at = maps[i].at + b;
        if (mapped(maps[i].at) != maps[i].size || (size_t)b >= maps[i].size)
            return say("not mapped");
        if (op[1] == 'o' && !maps[i].read_only)
            *at = (char)c;
        say("%d", *(volatile char *)at);
    } else if (!strcmp(op, "child") && sscanf(line, "%*s %31s", what) == 1) {
        child_op(what);
        look();
    } else {
        say("what is %s?", op);
    }
}

int main(int argc, char **argv)
{
    int to[WORKERS], from[WORKERS];
    worker_count = argc - 1;
    for (int i = 0; i < worker_count; i++) {
        int down[2], up[2];
        if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC))
            return 3;
        if ((workers[i] = fork()) == 0) {
            unsigned uid, gid, extra;
            int ids_in = sscanf(argv[i + 1], "%u:%u:%u", &uid, &gid, &extra);
            workers[i] = getpid();
            if (setgroups(ids_in == 3, (gid_t[]){extra}) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
                return 3;
            close(down[1]), close(up[0]);
            FILE *in = fdopen(down[0], "r");
            char line[512];
            /* What the others are called, and which ids there are, comes with each line. */
            while (fgets(line, sizeof line, in)) {
                if (line[0] == '@') {
                    sscanf(line, "@ %d %d %d %d", &workers[0], &workers[1], &workers[2], &workers[3]);
                    continue;
                }
                if (line[0] == '+') {
                    ids[id_count++ % MOST] = atoi(line + 1);
                    continue;
                }
                out[0] = 0;
                perform(line);
                dprintf(up[1], "%s\n", out);
            }
            if (child)
                kill(child, SIGKILL);
            return 0;
        }
        close(down[0]), close(up[1]);
        to[i] = down[1], from[i] = up[0];
    }
    for (int i = 0; i < worker_count; i++)
        dprintf(to[i], "@ %d %d %d %d\n", workers[0], workers[1], workers[2], workers[3]);
    char line[512];
    while (fgets(line, sizeof line, stdin)) {
        int worker, at = 0;
        if (sscanf(line, "%d %n", &worker, &at) != 1 || worker >= worker_count)
            return 4;
        dprintf(to[worker], "%s", line + at);
        size_t used = 0;
        for (out[0] = 0; used < sizeof out - 1 && read(from[worker], out + used, 1) == 1; used++)
            if (out[used] == '\n')
                break;
        if (used == 0 && out[0] != '\n') {
            printf("worker %d died at %s", worker, line);
            return 5;
        }
        out[used] = 0;
        printf("%s\n", out);
        if (!strncmp(line + at, "get", 3) && out[0] != '-')
            for (int i = 0; i < worker_count; i++)
                dprintf(to[i], "+%s\n", out);
    }
    return 0;
}
