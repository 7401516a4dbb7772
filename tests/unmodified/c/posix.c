/* A writer and a reader with POSIX calls alone:  posix write NAME TEXT | posix read NAME | posix grow NAME BYTES
 * | posix touch NAME BYTES | posix put NAME TEXT [MODE] | posix see NAME | posix unlink NAME
 * put and see are write and read without a semaphore. */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    umask(0); /* members of other uids are to write too */
    if (argv[1][0] == 'u')
        return shm_unlink(argv[2]) ? (printf("shm_unlink: errno %d\n", errno), 1) : (puts("unlinked"), 0);
    int reads = argv[1][0] == 'r' || argv[1][0] == 's';
    mode_t mode = argc > 4 ? (mode_t)strtol(argv[4], NULL, 8) : 0666;
    int fd = shm_open(argv[2], reads ? O_RDONLY : O_RDWR | O_CREAT, mode);
    if (fd < 0)
        return printf("shm_open: errno %d\n", errno), 1;
    if (argv[1][0] == 'g') {
        if (ftruncate(fd, atoll(argv[3])))
            return printf("ftruncate: errno %d\n", errno), 1;
        struct stat st;
        fstat(fd, &st);
        return printf("grown to %lld, %lld allocated\n", (long long)st.st_size, (long long)st.st_blocks * 512), 0;
    }
    if (argv[1][0] == 't') {
        size_t size = (size_t)atoll(argv[3]);
        if (ftruncate(fd, (off_t)size))
            return printf("ftruncate: errno %d\n", errno), 1;
        char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        for (size_t at = 0; all != MAP_FAILED && at < size; at += 4096)
            all[at] = 1;
        return 0;
    }
    if (!reads && ftruncate(fd, 4096))
        return printf("ftruncate: errno %d\n", errno), 1;
    char *at = mmap(NULL, 4096, reads ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return printf("mmap: errno %d\n", errno), 1;
    if (argv[1][0] == 'p')
        return strncpy(at, argv[3], 4095), puts("put"), 0;
    if (argv[1][0] == 's')
        return printf("seen %s\n", at), 0;
    /* A named semaphore beside it, which is an object of its own in /dev/shm. */
    char name[300];
    snprintf(name, sizeof name, "%s-ready", argv[2]);
    sem_t *ready = sem_open(name, O_CREAT, 0666, 0);
    if (ready == SEM_FAILED)
        return printf("sem_open: errno %d\n", errno), 1;
    if (argv[1][0] == 'w') {
        strncpy(at, argv[3], 4095);
        sem_post(ready);
        return puts("written"), 0;
    }
    sem_wait(ready);
    return printf("read %s\n", at), 0;
}
