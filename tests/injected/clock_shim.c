/* The wall clock, set by a file: preloaded, it adds the seconds that stand in the file of PORTREEVE_CLOCK to what
 * clock_gettime(2) says of CLOCK_REALTIME, and reads it anew each time. All other clocks go as they go. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = (int)syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("PORTREEVE_CLOCK");
    if (failed || path == NULL || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    char text[32] = "0";
    ssize_t length = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
    time->tv_sec += atoll(text);
    return 0;
}
