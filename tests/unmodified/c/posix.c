/* A writer and a reader with POSIX calls alone:  posix write NAME TEXT | posix read NAME | posix grow NAME BYTES
 * | posix touch NAME BYTES */
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
    int fd = shm_open(argv[2], argv[1][0] == 'r' ? O_RDONLY : O_RDWR | O_CREAT, 0666);
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
    if (argv[1][0] == 'w' && ftruncate(fd, 4096))
        return printf("ftruncate: errno %d\n", errno), 1;
    char *at = mmap(NULL, 4096, argv[1][0] == 'r' ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return printf("mmap: errno %d\n", errno), 1;
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
