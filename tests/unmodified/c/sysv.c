/* System V calls alone:  sysv write KEY TEXT | sysv read KEY | sysv hold KEY | sysv forks KEY | sysv daemon KEY
 * | sysv threads KEY | sysv sem | sysv speed KEY [BESIDE] | sysv ftok PATH | sysv refused: a call for each way to be refused, twice */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int id;
extern char **environ;

static long attached(void)
{
    struct shmid_ds ds;
    return shmctl(id, IPC_STAT, &ds) ? -errno : (long)ds.shm_nattch;
}

static int expect(const char *what, long found, long wanted)
{
    if (found != wanted)
        printf("%s: expected %ld attached, found %ld\n", what, wanted, found);
    return found == wanted;
}

static int forks(char *at)
{
    int pipe_in[2], fine = expect("alone", attached(), 1);
    for (int round = 0; round < 50 && fine; round++) {
        if (pipe(pipe_in))
            return 0;
        pid_t child = fork();
        if (child == 0) {
            char order;
            close(pipe_in[1]);
            at[round] = 'c';
            if (read(pipe_in[0], &order, 1) == 1)
                execl("/bin/true", "true", (char *)0);
            pause();
        }
        fine &= expect("after fork", attached(), 2);
        if (round % 2)
            kill(child, SIGKILL);
        else if (write(pipe_in[1], "x", 1) != 1)
            return 0;
        waitpid(child, NULL, 0);
        fine &= expect(round % 2 ? "after kill -9" : "after exec and exit", attached(), 1);
        fine &= at[round] == 'c' || round % 2;
        close(pipe_in[0]), close(pipe_in[1]);
        child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        fine &= expect("after vfork and exec", attached(), 1);
        waitpid(child, NULL, 0);
        if (posix_spawn(&child, "/bin/true", NULL, NULL, (char *[]){"true", NULL}, environ))
            return 0;
        fine &= expect("after posix_spawn", attached(), 1);
        waitpid(child, NULL, 0);
        /* A parent that lets go at once, while its child has hardly begun. */
        char *again = shmat(id, NULL, 0);
        child = fork();
        if (child == 0)
            pause();
        shmdt(again);
        fine &= expect("after fork and shmdt", attached(), 3);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        fine &= expect("at the end", attached(), 1);
    }
    return fine;
}

static void *attaches(void *failed)
{
    for (int i = 0; i < 200; i++) {
        char *at = shmat(id, NULL, i % 3 ? 0 : SHM_RDONLY);
        if (at == (char *)-1 || (i % 50 == 0 && system("true")) || shmdt(at))
            *(int *)failed = errno;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "sem")) {
        int sem = semget(1, 1, IPC_CREAT | 0600), error = errno;
        printf("semget %d errno %d msgget %d", sem, sem < 0 ? error : 0, msgget(1, IPC_CREAT | 0600));
        return printf(" errno %d\n", errno), 0;
    }
    if (!strcmp(what, "refused")) {
        struct shmid_ds ds;
        for (int twice = 0; twice < 2; twice++) {
            printf("%d", (shmget(0x77, (size_t)1 << 60, IPC_CREAT), errno)); /* absurd size */
            printf(" %d", (shmget(0x78, 0, 0), errno));                     /* wrong key */
            printf(" %d", (shmget(0x79, 4096, 0600), errno));               /* another's */
            printf(" %d", (shmget(0x7a, 128 << 10, IPC_CREAT), errno));     /* full */
            printf(" %d\n", (shmctl(4711, IPC_STAT, &ds), errno));          /* no such id */
        }
        return 0;
    }
    if (!strcmp(what, "ftok"))
        return printf("%x\n", (unsigned)ftok(argv[2], 7)), 0;
    int creates = strcmp(what, "read") ? IPC_CREAT : 0;
    id = shmget((key_t)strtol(argv[2], NULL, 0), creates ? 4096 : 0, creates | 0666);
    if (id < 0)
        return printf("shmget: errno %d\n", errno), 1;
    char *at = shmat(id, NULL, 0);
    if (at == (char *)-1)
        return printf("shmat: errno %d\n", errno), 1;
    if (!strcmp(what, "write"))
        return strcpy(at, argv[3]), puts("written"), 0;
    if (!strcmp(what, "read"))
        return printf("read %s\n", at), 0;
    if (!strcmp(what, "forks"))
        return forks(at) ? (puts("right"), 0) : 1;
    if (!strcmp(what, "hold")) {
        puts("holding"), fflush(stdout);
        while (getchar() != EOF)
            printf("%ld %s\n", attached(), at), fflush(stdout);
        return 0;
    }
    if (!strcmp(what, "daemon")) {
        if (daemon(0, 0))
            return 1;
        for (int fd = 0; fd < 1024; fd++)
            close(fd); /* whoever keeps count by a descriptor loses it here */
        strcpy(at, "daemon");
        for (int i = 0; i < 600 && strcmp(at, "end"); i++)
            usleep(100000);
        return 0;
    }
    if (!strcmp(what, "threads")) {
        pthread_t threads[4];
        int failed = 0;
        for (int i = 0; i < 4; i++)
            pthread_create(&threads[i], NULL, attaches, &failed);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        return printf("failed %d attached %ld\n", failed, attached()), failed;
    }
    if (!strcmp(what, "speed")) {
        double best = 1e9;
        int beside = argc > 3 ? atoi(argv[3]) : 1;
        void *at_once[64];
        for (int round = 0; round < 200; round++) {
            struct timespec a, b;
            clock_gettime(CLOCK_MONOTONIC, &a);
            for (int i = 0; i < beside && i < 64; i++)
                at_once[i] = shmat(shmget((key_t)strtol(argv[2], NULL, 0), 4096, 0666), NULL, 0);
            clock_gettime(CLOCK_MONOTONIC, &b);
            for (int i = 0; i < beside && i < 64; i++)
                shmdt(at_once[i]);
            double took = ((double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) / 1e3) / beside;
            best = took < best ? took : best;
        }
        return printf("shmget and shmat: %.1f us\n", best), 0;
    }
    return 2;
}
