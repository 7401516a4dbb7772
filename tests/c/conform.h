/* The participants of the conformance suite in C, and in C++ (tests/cpp): what conform.c and its two halves share. */
#ifndef CONFORM_H
#define CONFORM_H

#include "podshm.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOST_WORDS 80
#define MOST_ANSWER 256

/* A command, and where its answer goes. */
struct command {
    char *words[MOST_WORDS];
    int count;
    char answer[MOST_ANSWER];
};

/* Word number `n`, or the number in it; a command that is too short ends the program. */
const char *word(const struct command *command, int n);
uint64_t number(const struct command *command, int n);
uint64_t nanos(const struct command *command, int n);

/* What a result is called in an answer, into `answer`; `needed` goes with BUFFER_TOO_SMALL. Returns whether it was PODSHM_OK, which is
 * answered by "ok". */
int say(struct command *command, podshm_result result, size_t needed);
void says(struct command *command, const char *answer);
/* What the last error said of itself, for "because WORDS". */
void reasons(const char *message);

/* The bytes of this length and seed. */
void bytes(unsigned char *to, size_t len, uint64_t seed);
/* Byte number `at` of them. */
unsigned char byte(size_t at, uint64_t seed);
int are_bytes(const unsigned char *found, size_t len, uint64_t seed);
/* A key as the suite writes it; `to` has room for 512 bytes. */
size_t key_of(const char *written, char *to);
/* Key number `n` of many. */
size_t key_number(unsigned n, char *to);

/* Says "ok" in place of whoever reads the next command, and never comes back. */
void hang(void);

/* Ends the program: the test is at fault. */
void die(const char *what, const char *detail);

void client_command(struct command *command, const char *directory);
void agent_command(struct command *command, const char *directory);
/* A round of an agent that serves; whether it does. */
int agent_round(void);

/* Runs `run` in a forked child; its answer is this process's. */
void in_child(struct command *command, const char *directory, void (*run)(struct command *, const char *));
/* The same in so many children at once, as in a prefork server: "prefork COUNT ...". What they all answer. */
void in_children(struct command *command, const char *directory, void (*run)(struct command *, const char *));

#ifdef __cplusplus
}
#endif

#endif
