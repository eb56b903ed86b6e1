/* The named points of the lane in C, for a build with -DAEMBUS_KILLPOINTS: see KILLPOINT in
 * aembus/shm/_lane.h.  Called by ctypes (steps.py), with the GIL held. */

#include <signal.h>
#include <stdint.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef void (*At)(uint64_t number, const char *name);

static uint64_t passed, wanted;
static int counting, signal_number;
static At at;

/* Count the points from now on; send this process a signal at the one of this number, if not 0. */
EXPORT void killpoints_begin(uint64_t number, int signal_wanted, At called)
{
    passed = 0;
    wanted = number;
    signal_number = signal_wanted;
    at = called;
    counting = 1;
}

/* Count no more; return how many there were. */
EXPORT uint64_t killpoints_end(void)
{
    counting = 0;
    return passed;
}

__attribute__((visibility("hidden"))) void lane_killpoint(const char *name)
{
    if (!counting)
        return;
    passed++;
    if (passed == wanted)
        kill(getpid(), signal_number);
    if (at != NULL)
        at(passed, name);
}
