/* Shared memory as unmodified programs use it, one step at a time.
 *
 *   probe hold                      waits until it is told to end
 *   probe posix-put NAME TEXT       shm_open, ftruncate, mmap; leaves TEXT in the object
 *   probe posix-get NAME            prints what is in it
 *   probe sysv-put KEY TEXT         shmget, shmat
 *   probe sysv-get KEY
 *   probe sysv-fill KEY MIB         makes a segment of that size, writes to all of it, removes it
 *   probe sem-get KEY               semget
 *   probe remove NAME KEY           shm_unlink, shmctl(IPC_RMID)
 *   probe fill NAME MIB             writes so much into an object, page by page
 *   probe size                      prints /dev/shm's size in MiB
 *
 * What fails is said on standard output, as "posix-get: No such file or directory", and ends with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { SIZE = 4096 };

static const char *verb;

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static void must(int is_fine) {
    if (is_fine) return;
    printf("%s: %s\n", verb, strerror(errno));
    exit(1);
}

static char *object(const char *name, int flags, size_t size) {
    int fd = shm_open(name, flags, 0666);
    must(fd >= 0);
    if (flags & O_CREAT) {
        fchmod(fd, 0666);
        must(ftruncate(fd, (off_t)size) == 0);
    }
    char *at = mmap(NULL, size, PROT_READ | (flags & O_CREAT ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    must(at != MAP_FAILED);
    return at;
}

static char *segment(const char *key, int flags) {
    int id = shmget((key_t)strtol(key, NULL, 0), SIZE, flags);
    must(id >= 0);
    char *at = shmat(id, NULL, flags & IPC_CREAT ? 0 : SHM_RDONLY);
    must(at != (char *)-1);
    return at;
}

int main(int count, char **word) {
    verb = count > 1 ? word[1] : "";
    if (!strcmp(verb, "hold")) {
        signal(SIGTERM, end);
        for (;;) pause();
    } else if (!strcmp(verb, "posix-put") && count == 4) {
        strncpy(object(word[2], O_CREAT | O_RDWR, SIZE), word[3], SIZE - 1);
    } else if (!strcmp(verb, "posix-get") && count == 3) {
        puts(object(word[2], O_RDONLY, SIZE));
    } else if (!strcmp(verb, "sysv-put") && count == 4) {
        strncpy(segment(word[2], IPC_CREAT | 0666), word[3], SIZE - 1);
    } else if (!strcmp(verb, "sysv-get") && count == 3) {
        puts(segment(word[2], 0));
    } else if (!strcmp(verb, "sysv-fill") && count == 4) {
        size_t size = strtoul(word[3], NULL, 10) << 20;
        int id = shmget((key_t)strtol(word[2], NULL, 0), size, IPC_CREAT | IPC_EXCL | 0666);
        must(id >= 0);
        char *at = shmat(id, NULL, 0);
        must(at != (char *)-1);
        memset(at, 1, size);
        must(shmctl(id, IPC_RMID, NULL) == 0);
        printf("%zu\n", size >> 20);
    } else if (!strcmp(verb, "sem-get") && count == 3) {
        must(semget((key_t)strtol(word[2], NULL, 0), 1, IPC_CREAT | 0666) >= 0);
        puts("made");
    } else if (!strcmp(verb, "remove") && count == 4) {
        must(shm_unlink(word[2]) == 0);
        must(shmctl(shmget((key_t)strtol(word[3], NULL, 0), 0, 0), IPC_RMID, NULL) == 0);
    } else if (!strcmp(verb, "fill") && count == 4) {
        size_t size = strtoul(word[3], NULL, 10) << 20;
        char *at = object(word[2], O_CREAT | O_RDWR, size);
        for (size_t page = 0; page < size; page += SIZE) at[page] = 1;
        printf("%zu\n", size >> 20);
    } else if (!strcmp(verb, "size")) {
        struct statvfs found;
        must(statvfs("/dev/shm", &found) == 0);
        printf("%lu\n", found.f_blocks * found.f_frsize >> 20);
    } else {
        puts("expected one of the verbs that probe.c lists");
        return 2;
    }
    return 0;
}
