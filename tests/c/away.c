/* A C program, which dies of SIGPIPE as C programs do, pushes to an agent that has gone meanwhile.
 *
 *   away DIRECTORY     joins, says "client N", waits for a line, pushes, says "pushed"
 */
#include "shim.h"

#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct shim_client *client;
    char line[64];
    alarm(120);
    if (argc != 2 || shim_join(argv[1], &client) < 0) {
        fprintf(stderr, "away: %s\n", argc == 2 ? shim_last_message() : "usage: away DIRECTORY");
        return 1;
    }
    printf("client %lu\n", (unsigned long)shim_id(client));
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        return 1;
    for (int n = 0; n < 10; n++) {
        if (shim_push(client, "reports", "away", 4) < 0) {
            fprintf(stderr, "away: push: %s\n", shim_last_message());
            return 1;
        }
    }
    puts("pushed");
    shim_leave(client);
    return 0;
}
