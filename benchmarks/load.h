/* What the programs of the loads have in common: a clock, the words they exchange with the benchmark, round trips. */

#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TRIPS = 1 << 22 }; /* round trips that are remembered */

static float trips[MOST_TRIPS]; /* seconds */

static inline double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static inline void sleep_until(double when)
{
    struct timespec time = {.tv_sec = when, .tv_nsec = (when - (time_t)when) * 1e9};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline void say(const char *word)
{
    puts(word);
    fflush(stdout);
}

static inline void await_end_of_input(void)
{
    char byte;

    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
}

/* Wait for the next word of the benchmark, or for the end of them. */
static inline void await_word(void)
{
    char byte = 0;

    while (read(STDIN_FILENO, &byte, 1) > 0 && byte != '\n')
        ;
}

static inline void use_all_descriptors(void)
{
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static inline int compare(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;

    return (a > b) - (a < b);
}

/* Print how long the round trips of so many seconds took, of which the first MOST_TRIPS are in `trips`. */
static inline void print_trips(long answered, long lost, double seconds)
{
    long known = answered < MOST_TRIPS ? answered : MOST_TRIPS;

    qsort(trips, known, sizeof *trips, compare);
    printf("{\"trips\": %ld, \"lost\": %ld, \"seconds\": %.6f, \"median_us\": %.1f, \"p99_us\": %.1f}\n", answered,
           lost, seconds, trips[known / 2] * 1e6, trips[known * 99 / 100] * 1e6);
}
